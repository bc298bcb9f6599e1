"""Fish: gradients that point the same way in all environments, by steps through them one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from l2r2.training.objectives.base import Batch, Descent, Network, Number, Step
from l2r2.training.objectives.erm import ERM


class Fish(ERM):
    """One ordinary step in each environment in turn; then the network goes only the share `meta_rate` of the way.

    The optimizer remembers from step to step. Running statistics go the same share.

    Source: Shi et al. 2022, arXiv:2104.09937, algorithm 1; DomainBed, Fish (meta_lr 0.5, environments in order).
    """

    numbers = {"meta_rate": Number(0.5, high=1)}

    def update(self, network: Network, descent: Descent, batches: Sequence[Batch], step: Step) -> float:
        before = {name: value.clone() for name, value in network.module.state_dict().items()}
        losses = []
        for batch in batches:
            loss = self.loss(network, [batch], step)
            descent(loss)
            losses.append(loss.item())
        with torch.no_grad():
            for name, value in network.module.state_dict().items():
                if value.is_floating_point():
                    value.copy_(before[name].lerp(value, self.settings["meta_rate"]))
        return sum(losses) / len(losses)
