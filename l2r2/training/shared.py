"""One encoder for several views, a head each, trained together; written as one ordinary classifier a view."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset

from l2r2 import datasets
from l2r2.classification.timm_model import head_of, pooled
from l2r2.config import ImageSettings, TrainSettings, ViewSettings
from l2r2.errors import ConfigError
from l2r2.training.augment import Augment
from l2r2.training.fit import Fitted, labelled, new_network, write
from l2r2.training.loading import ViewDataset, ViewsDataset, learns, loader
from l2r2.training.module import ViewClassifier
from l2r2.training.trainer import CHECKPOINTS, OnEpoch, train
from l2r2.types import Region, View

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Images "n v 3 size size", which of them count "n v", labels "n"."""


def fit_shared(
    photographs: datasets.Dataset,
    regions: Mapping[str, Region | None],
    views: Sequence[View],
    settings: TrainSettings,
    view_settings: ViewSettings,
    images: ImageSettings,
    seed: int,
    folder: Path,
    on_epoch: OnEpoch | None = None,
) -> dict[View, Fitted]:
    """Minimise the sum of the views' cross entropies, keep the epoch with the lowest mean validation loss.

    FG views learn from photographs with a region only. Resumes as `fit_classifier` does. Each view's weights and
    logits go into a folder of its name.

    Raises:
        TrainingError: the loss is not finite.
        DatasetError: no training photograph has a region, and a view is of the foreground.
        ConfigError: a frozen backbone, or an objective other than erm.
    Source: the paper, section 4.2 ("a unified model with a shared backbone can be adopted in practice").
    """
    if settings.trainable == "head":
        raise ConfigError('train.shared = true needs train.trainable = "all"; a frozen backbone is shared already')
    if settings.objective != "erm":
        raise ConfigError(f'train.shared = true needs train.objective = "erm"; got {settings.objective!r}')
    photographs = labelled(photographs)
    splits = {name: photographs.split(name) for name in sorted(set(photographs.table["split"]))}
    counts = np.stack([learns(splits["train"], regions, view) for view in views], axis=1)
    learned = Subset(
        ViewsDataset(splits["train"], regions, views, view_settings, images, counts),
        np.flatnonzero(counts.any(axis=1)).tolist(),
    )
    pl.seed_everything(seed, workers=True, verbose=False)
    shared = SharedNetwork(new_network(settings, photographs, view_settings), views)
    module = SharedClassifier(shared, settings)
    batches = loader(learned, settings.batch_size, settings.workers, seed)
    everything = np.ones((len(splits["val"]), len(views)), dtype=bool)
    val = ViewsDataset(splits["val"], regions, views, view_settings, images, everything)
    val_batches = loader(val, settings.batch_size, settings.workers)
    augment = Augment(settings, view_settings, seed)
    epoch = train(module, batches, val_batches, settings, seed, folder, on_epoch, [augment])
    fitted = {}
    for view in views:
        network = shared.of(view)
        items = {name: ViewDataset(part, regions, view, view_settings, images) for name, part in splits.items()}
        fitted[view] = write(network, network, splits, items, regions, settings, folder / view, epoch)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return fitted


class SharedNetwork(nn.Module):
    """A timm model with a head a view in the place of its own."""

    def __init__(self, network: nn.Module, views: Sequence[View]) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict({view: copy.deepcopy(head_of(network)) for view in views})
        head_of(network).requires_grad_(False)

    def forward(self, images: torch.Tensor, counts: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each view, "m k", for the images that count; one pass, so batch statistics are of all views."""
        features, view_of = pooled(self.network, images[counts]), counts.nonzero()[:, 1]
        return [head(features[view_of == i]) for i, head in enumerate(self.heads.values())]

    def of(self, view: View) -> nn.Module:
        """The timm model with that view's head; the same model each time."""
        head_of(self.network).load_state_dict(self.heads[view].state_dict())
        return self.network


class SharedClassifier(ViewClassifier):
    """Trains a `SharedNetwork`."""

    network: SharedNetwork

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:  # type: ignore[override]
        images, counts, labels = batch
        logits = self.network(images, counts)
        losses = [self._loss(rows, labels[counts[:, i]]) for i, rows in enumerate(logits) if len(rows)]
        loss = torch.stack(losses).sum()
        self._check("training", loss, index)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:  # type: ignore[override]
        images, counts, labels = batch
        logits = torch.stack(self.network(images, counts))
        losses = torch.stack([cross_entropy(rows, labels) for rows in logits])
        right = (logits.argmax(dim=2) == labels).float().mean()
        self._log_validation(losses.mean(), right, len(images), index)
