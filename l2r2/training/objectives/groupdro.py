"""Group distributionally robust optimisation: the environment that fares worst weighs most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from l2r2.training.objectives.base import Batch, Network, Number, Objective, Step, apart, together


class GroupDRO(Objective):
    """Σ q_e R_e, where each step multiplies q_e by exp(eta R_e) and normalises; q starts uniform.

    `eta`: how fast weights follow the risks.

    Source: Sagawa et al. 2020, arXiv:1911.08731, algorithm 1; DomainBed, GroupDRO (eta 0.01).
    """

    numbers = {"eta": Number(0.01)}

    def __init__(self, settings: Mapping[str, float], environments: int, label_smoothing: float = 0.0) -> None:
        super().__init__(settings, environments, label_smoothing)
        self.q: Float[Tensor, " e"] = torch.full((environments,), 1 / environments)

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:  # noqa: ARG002
        logits = apart(network(together(batches)), batches)
        risks = torch.stack([self.risk(part, batch.labels) for part, batch in zip(logits, batches, strict=True)])
        # in the logarithm, where a large eta × risk does not overflow
        self.q = (self.q.to(risks).log() + self.settings["eta"] * risks.detach()).softmax(dim=0)
        return (self.q * risks).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"q": self.q}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.q = state["q"]
