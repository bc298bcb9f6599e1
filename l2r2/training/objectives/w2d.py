"""W2D: training on the worst samples, and without what the network looks at most in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from l2r2.errors import ConfigError
from l2r2.training.objectives.base import (
    Batch,
    Network,
    Number,
    Objective,
    Step,
    all_labels,
    evaluating,
    together,
)

MARGIN = 1e-4
"""A muted sample must lose more probability than this. Source: as W2D."""


class W2D(Objective):
    """The risk of the hardest samples, where those that lean most on one place have that place muted.

    `worst_share`: of a step's samples, by loss, that are kept; 1: all.
    `last_share`: of training, at its end, that keeps all.
    `mute_share`: of the places of a feature map, by class activation, that are muted; 0: none.
    `mute_samples`: share of the samples, by the probability that muting costs the true class, that are muted.

    Source: Huang et al. 2022, arXiv:2204.04384, section 3, and the numbers of its code, which is built on DomainBed
    (1/3, 1/4, 1/4, 1/4). Its feature maps are those of a convolutional network.
    """

    numbers = {
        "worst_share": Number(1 / 3, high=1),
        "last_share": Number(0.25, high=1),
        "mute_share": Number(0.25, high=0.99),
        "mute_samples": Number(0.25, high=1),
    }

    def loss(self, network: Network, batches: Sequence[Batch], step: Step) -> Float[Tensor, ""]:
        images, labels = together(batches), all_labels(batches)
        if step.number < step.total * (1 - self.settings["last_share"]):
            chosen = worst(network, images, labels, self.settings["worst_share"])
            images, labels = images[chosen], labels[chosen]
        maps = network.maps(images)
        if maps.ndim != 4 or getattr(network.module, "output_fmt", "NCHW") != "NCHW":
            raise ConfigError(
                f"objective w2d mutes places of feature maps n × d × h × w; {type(network.module).__name__} gives "
                f"{'×'.join(map(str, maps.shape))}; choose a convolutional train.model"
            )
        keep = kept(network, maps.detach(), labels, self.settings["mute_share"], self.settings["mute_samples"])
        return self.risk(network.classify(network.pool(maps * keep[:, None])), labels)


def worst(
    network: Network, images: Float[Tensor, "n 3 size size"], labels: Int[Tensor, " n"], share: float
) -> Int[Tensor, " m"]:
    """The ⌊share × n⌋ samples (at least one) of the highest loss, highest first; all as they are where that is n."""
    count = max(int(len(labels) * share), 1)
    if count == len(labels):
        return torch.arange(count, device=labels.device)
    with torch.no_grad(), evaluating(network.module):
        losses = cross_entropy(network(images), labels, reduction="none")
    return losses.argsort(descending=True, stable=True)[:count]


def kept(
    network: Network, maps: Float[Tensor, "n d h w"], labels: Int[Tensor, " n"], share: float, samples: float
) -> Bool[Tensor, "n h w"]:
    """Where maps stay: everywhere but in the places of highest activation of the samples that these cost most.

    A class activation is Σ_d ḡ_d m_d, ḡ the place's mean of the gradient of the true class's logit. The ⌊share × h w⌋
    highest are muted, and of the samples the round(samples × n) that lose most probability by it, if any (`MARGIN`).
    """
    with torch.enable_grad(), evaluating(network.module):
        maps = maps.clone().requires_grad_()
        logits = network.classify(network.pool(maps))
        gradient = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps)[0]
    with torch.no_grad(), evaluating(network.module):
        activation = (maps * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1).flatten(1)
        keep = activation <= _highest(activation, int(activation.shape[1] * share))
        keep = keep.view(len(maps), *maps.shape[2:])
        after = network.classify(network.pool(maps * keep[:, None]))
        before, after = (values.softmax(dim=1).gather(1, labels[:, None])[:, 0] for values in (logits, after))
        cost = (before - after - MARGIN).clamp(min=0)
        leaning = cost > _highest(cost, min(round(len(maps) * samples), len(maps) - 1))
    return keep | ~leaning[:, None, None]


def _highest(values: Float[Tensor, "... n"], rank: int) -> Float[Tensor, "... 1"]:
    """The value that `rank` others exceed at most, along the last axis."""
    return values.sort(dim=-1, descending=True).values[..., rank : rank + 1]
