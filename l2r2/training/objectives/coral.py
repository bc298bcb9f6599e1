"""Correlation alignment: features with the same means and covariances in all environments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from l2r2.training.objectives.base import Batch, Network, Number, Objective, Step, all_labels, apart, together


class Coral(Objective):
    """Mean risk + gamma × the mean over pairs of environments of `distance` between their pooled features.

    Source: Sun and Saenko 2016, arXiv:1607.01719 (covariances); DomainBed, CORAL (means as well; gamma 1).
    """

    numbers = {"gamma": Number(1)}
    least_batch = 2

    def distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        return moment_distance(x, y)

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:  # noqa: ARG002
        features = network.features(together(batches))
        risk = self.risk(network.classify(features), all_labels(batches))
        pairs = list(combinations(apart(features, batches), 2))
        if not pairs:
            return risk
        with torch.autocast(features.device.type, enabled=False):  # differences of near equals need every digit
            penalty = torch.stack([self.distance(x.float(), y.float()) for x, y in pairs]).mean()
        return risk + self.settings["gamma"] * penalty


def moment_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Mean squared difference of the means + that of the covariances (of n - 1).

    Source: DomainBed, AbstractMMD, kernel "mean_cov".
    """
    means = [part.mean(dim=0) for part in (x, y)]
    first, second = (
        (part - mean).T @ (part - mean) / (len(part) - 1) for part, mean in zip((x, y), means, strict=True)
    )
    return (means[0] - means[1]).square().mean() + (first - second).square().mean()
