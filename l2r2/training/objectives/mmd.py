"""Maximum mean discrepancy: features of the same distribution in all environments."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from l2r2.training.objectives.coral import Coral

WIDTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""γ of the kernels exp(-γ |x - y|²). Source: DomainBed, AbstractMMD."""


class MMD(Coral):
    """As `Coral`, with the squared maximum mean discrepancy as distance.

    Source: Li et al. 2018, Domain generalization with adversarial feature learning (MMD-AAE), equation 5; DomainBed,
    MMD, which leaves out that paper's adversarial autoencoder, and so does this (gamma 1).
    """

    def distance(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        return mean_discrepancy(x, y)


def mean_discrepancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Mean kernel within x + within y - 2 × between, the kernel being a sum of Gaussian ones; the biased estimate."""
    return _kernel(x, x).mean() + _kernel(y, y).mean() - 2 * _kernel(x, y).mean()


def _kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    squared = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
    squared = squared.clamp(min=0)  # rounding may leave a distance to itself below
    return torch.stack([(-width * squared).exp() for width in WIDTHS]).sum(dim=0)
