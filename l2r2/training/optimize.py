"""The optimizer and its learning rate, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from l2r2.config import TrainSettings
from l2r2.errors import ConfigError

MOMENTUM = 0.9
"""Of SGD, without Nesterov. Source: He et al. 2016, arXiv:1512.03385, section 3.4."""

WARMUP_START = 0.01
"""Share of the learning rate in the first epoch of a warm-up."""


def configure(parameters: Iterable[nn.Parameter], settings: TrainSettings) -> dict[str, object]:
    """Optimizer and schedule in the form of Lightning's `configure_optimizers`.

    Weight decay is decoupled in adamw, an L2 term of the gradient in adam and sgd.

    Raises:
        ConfigError: the warm-up leaves no epoch.
    """
    chosen, rate, decay = list(parameters), settings.learning_rate, settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(chosen, rate, weight_decay=decay)
    elif settings.optimizer == "adam":
        optimizer = torch.optim.Adam(chosen, rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(chosen, rate, momentum=MOMENTUM, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_of_epoch(settings))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def rate_of_epoch(settings: TrainSettings) -> Callable[[int], float]:
    """Epoch, from 0 → share of the learning rate, [0, 1].

    Warm-up rises by equal steps and reaches 1 in epoch `warmup_epochs`; cosine then falls to 0 at `epochs`.

    Raises:
        ConfigError: the warm-up leaves no epoch.
    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    warmup, epochs = settings.warmup_epochs, settings.epochs
    if warmup >= epochs:
        raise ConfigError(f"train.warmup_epochs = {warmup} leaves nothing of train.epochs = {epochs}; lower it")

    def share(epoch: int) -> float:
        if epoch < warmup:
            return WARMUP_START + (1 - WARMUP_START) * epoch / warmup
        if settings.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2

    return share
