"""Invariant risk minimisation: one classifier that is optimal in every environment at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2r2.training.objectives.base import Annealed, Batch, Number


class IRM(Annealed):
    """Penalises the risk's gradient by a scale on the logits, at 1, which is 0 where the classifier is optimal.

    `penalty`: weight once annealed. `anneal_steps`: steps before that, with weight 1.

    Source: Arjovsky et al. 2019, arXiv:1907.02893, IRMv1 and appendix D; DomainBed, IRM (100 after 500 steps).
    """

    numbers = {"penalty": Number(100), "anneal_steps": Number(500, whole=True)}
    least_batch = 2

    def penalty(
        self,
        logits: Sequence[Tensor],
        batches: Sequence[Batch],
        risks: Float[Tensor, " e"],  # noqa: ARG002
    ) -> Float[Tensor, ""]:
        each = [self.squared_gradient(part, batch.labels) for part, batch in zip(logits, batches, strict=True)]
        return torch.stack(each).mean()

    def squared_gradient(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Unbiased estimate of the squared gradient: the product of the gradients of two halves (every other row).

        It may be negative.
        """
        kind = torch.promote_types(logits.dtype, torch.float32)
        scale = torch.ones((), dtype=kind, device=logits.device, requires_grad=True)
        risks = [self.risk(logits[half::2] * scale, labels[half::2]) for half in (0, 1)]
        first, second = (torch.autograd.grad(risk, scale, create_graph=True)[0] for risk in risks)
        return first * second
