"""Mixup across environments, of any labels or of the same label only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from l2r2.training.objectives.base import Batch, Network, Number, Objective, Step, apart

LISA_ALPHA = 2.0
"""Source: Yao et al. 2022, appendix A: λ ~ Beta(2, 2)."""


class Mixup(Objective):
    """The risk of λ x_i + (1 - λ) x_j, x_i of one environment and x_j of the next in a random ring.

    `alpha`: λ ~ Beta(alpha, alpha), one draw a pair of environments; 0: λ = 1, nothing is mixed.
    `selective`: 0: x_j is any example, and both labels count, as λ to 1 - λ; 1: x_j has x_i's label (x_i stays as it is
    where the other environment has none of it).

    Source: Xu et al. 2020, arXiv:1912.01805, and Yan et al. 2020, arXiv:2001.00677; DomainBed, Mixup (alpha 0.2).
    Selective: LISA's intra-label strategy, Yao et al. 2022, arXiv:2201.00299, section 3 (alpha 2 by default).
    """

    numbers = {"alpha": Number(0.2), "selective": Number(0, high=1, whole=True)}

    def __init__(self, settings: Mapping[str, float], environments: int, label_smoothing: float = 0.0) -> None:
        if settings.get("selective"):
            settings = {"alpha": LISA_ALPHA, **settings}
        super().__init__(settings, environments, label_smoothing)

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:
        alpha = self.settings["alpha"]
        ring = [batches[i] for i in step.rng.permutation(len(batches))]
        mixed, shares, others = [], [], []
        for one, other in zip(ring, [*ring[1:], ring[0]], strict=True):
            share = step.rng.beta(alpha, alpha) if alpha else 1.0
            if self.settings["selective"]:
                images, labels = _of_the_same_label(one, other, step.rng), one.labels
            else:
                images, labels = other.images, other.labels
            mixed.append(share * one.images + (1 - share) * images)
            shares.append(share)
            others.append(labels)
        logits = apart(network(torch.cat(mixed)), ring)
        risks = [
            share * self.risk(part, one.labels) + (1 - share) * self.risk(part, labels)
            for part, one, share, labels in zip(logits, ring, shares, others, strict=True)
        ]
        return torch.stack(risks).mean()


def _of_the_same_label(one: Batch, other: Batch, rng: np.random.Generator) -> Float[Tensor, "n 3 size size"]:
    """For each example of `one` a random example of `other` with its label, or itself."""
    partners, theirs = one.images.clone(), other.labels.cpu().numpy()
    for i, label in enumerate(one.labels.tolist()):
        same = np.flatnonzero(theirs == label)
        if len(same):
            partners[i] = other.images[int(rng.choice(same))]
    return partners
