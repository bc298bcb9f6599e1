"""Risk extrapolation: equal risks in all environments."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from l2r2.training.objectives.base import Annealed, Batch, Number


class VREx(Annealed):
    """Penalises the variance of the environments' risks, which is divided by their number, not by one less.

    `penalty`: weight once annealed. `anneal_steps`: steps before that, with weight 1.

    Source: Krueger et al. 2021, arXiv:2003.00688, equation 8; DomainBed, VREx (10 after 500 steps).
    """

    numbers = {"penalty": Number(10), "anneal_steps": Number(500, whole=True)}

    def penalty(
        self,
        logits: Sequence[Tensor],  # noqa: ARG002
        batches: Sequence[Batch],  # noqa: ARG002
        risks: Float[Tensor, " e"],
    ) -> Float[Tensor, ""]:
        return risks.var(correction=0)
