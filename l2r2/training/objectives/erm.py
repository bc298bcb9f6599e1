"""Empirical risk minimisation: the mean over all examples, wherever they are from."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from l2r2.training.objectives.base import Batch, Network, Objective, Step, all_labels, together


class ERM(Objective):
    """Mean cross entropy.

    Source: Vapnik 1991, Principles of risk minimization for learning theory; DomainBed, ERM.
    """

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:  # noqa: ARG002
        return self.risk(network(together(batches)), all_labels(batches))
