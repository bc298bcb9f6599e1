"""Just train twice: what a first, plain fit gets wrong weighs more in the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from l2r2.training.objectives.base import (
    Batch,
    Network,
    Number,
    Objective,
    Rehearsal,
    Step,
    all_labels,
    evaluating,
    together,
)


class JTT(Objective):
    """The risk on the training set in which each error of a first fit stands `up_weight` times.

    Before the first epoch the network is fitted by plain risk minimisation; its errors on the training set are noted,
    and it starts again from its initial weights. The loss divides by the set's mean weight, so that its size stays that
    of plain risk minimisation.

    `first_epochs`: of the first fit. `up_weight`: of its errors. No environments are used.

    Source: Liu et al. 2021, arXiv:2107.09044, algorithm 1; numbers of its appendix for CelebA (one epoch, 50), as
    DomainBed has no JTT.
    """

    numbers = {"first_epochs": Number(1, low=1, whole=True), "up_weight": Number(50, low=1)}

    def __init__(self, settings: Mapping[str, float], environments: int, label_smoothing: float = 0.0) -> None:
        super().__init__(settings, environments, label_smoothing)
        self.wrong: Int[Tensor, " m"] | None = None
        self.mean_weight = 1.0

    def begin(self, network: Network, rehearsal: Rehearsal) -> None:
        if self.wrong is not None:  # a resumed fit
            return
        initial = {name: value.clone() for name, value in network.module.state_dict().items()}
        rehearsal.train(int(self.settings["first_epochs"]))
        missed, count = [], 0
        with torch.no_grad(), evaluating(network.module):
            for batch in rehearsal.examples():
                missed.append(batch.positions[network(batch.images).argmax(dim=1) != batch.labels])
                count += len(batch.positions)
        network.module.load_state_dict(initial)
        self.wrong = torch.cat(missed).sort().values
        self.mean_weight = 1 + (self.settings["up_weight"] - 1) * len(self.wrong) / count

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:  # noqa: ARG002
        logits, labels = network(together(batches)), all_labels(batches)
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        if self.wrong is not None:
            wrong = torch.isin(torch.cat([batch.positions for batch in batches]), self.wrong.to(losses.device))
            losses = torch.where(wrong, self.settings["up_weight"] * losses, losses) / self.mean_weight
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"wrong": self.wrong, "mean_weight": self.mean_weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.wrong, self.mean_weight = state["wrong"], state["mean_weight"]
