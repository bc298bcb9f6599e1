"""Fit one classifier: features once where the backbone is frozen, resume after a kill, logits of every split."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import torch
from jaxtyping import Float32
from safetensors.torch import save
from torch import nn
from torch.utils.data import Dataset, Subset

from l2r2 import datasets
from l2r2.classification.timm_model import TorchClassifier, build_network, head_of
from l2r2.config import ImageSettings, TrainSettings, ViewSettings
from l2r2.errors import ConfigError
from l2r2.files import whole_file, write_table
from l2r2.logspace import log_normalize
from l2r2.metrics import nll
from l2r2.training.augment import Augment
from l2r2.training.features import frozen_features
from l2r2.training.loading import Item, TensorItems, ViewDataset, learns, loader
from l2r2.training.module import ViewClassifier
from l2r2.training.trainer import CHECKPOINTS, OnEpoch, train
from l2r2.types import Region, View

WEIGHTS, LOGITS = "model.safetensors", "logits.parquet"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted classifier on disk.

    Attributes:
        weights: The whole model, safetensors.
        logits: Parquet: digest, split, group, label, found, logits; one row a photograph of every split.
        best: Metrics of the epoch that was kept.
    """

    weights: Path
    logits: Path
    best: Mapping[str, float]


def fit_classifier(
    photographs: datasets.Dataset,
    regions: Mapping[str, Region | None],
    view: View,
    settings: TrainSettings,
    view_settings: ViewSettings,
    images: ImageSettings,
    seed: int,
    folder: Path,
    on_epoch: OnEpoch | None = None,
    features: Path | None = None,
) -> Fitted:
    """Train on train, keep the epoch with the lowest validation loss, score every split.

    A fit that was killed goes on from its last whole epoch when called again with the same folder. FG views train on
    photographs with a region only; they are scored on all, the others as FULL.

    Args:
        regions: Photograph's digest → region or None.
        folder: Of this fit alone; holds its checkpoint until it is done, then weights and logits.
        features: Where a frozen, pretrained backbone's features are kept for other seeds and for other partitions of
            the same photographs; None: nowhere.
    Raises:
        TrainingError: the loss is not finite.
        DatasetError: no training photograph has a region.
        ConfigError: an objective without environments, or without the whole network to train.
    """
    photographs = labelled(photographs)
    environments = _environments(photographs, settings)
    splits = {name: photographs.split(name) for name in sorted(set(photographs.table["split"]))}
    keep = np.flatnonzero(learns(splits["train"], regions, view))
    pl.seed_everything(seed, workers=True, verbose=False)
    network = new_network(settings, photographs, view_settings)
    items: dict[str, Dataset[Item]]
    if settings.trainable == "head":
        pretrained = settings.checkpoint is not None or settings.weights != "none"
        kept = features if pretrained else None
        known = frozen_features(network, photographs, regions, view, settings, view_settings, images, kept)
        items = {
            name: TensorItems(known.plain.of(part.table["digest"]), part.labels()) for name, part in splits.items()
        }
        learned: Dataset[Item] = Subset(items["train"], keep.tolist())
        if settings.flip:
            digests, labels = splits["train"].table["digest"].gather(keep), splits["train"].labels()[keep]
            both = torch.cat([known.plain.of(digests), known.mirrored.of(digests)])
            learned = TensorItems(both, np.concatenate([labels, labels]))
        trained, callbacks = head_of(network), []
    else:
        items = {name: ViewDataset(part, regions, view, view_settings, images) for name, part in splits.items()}
        learned = Subset(items["train"], keep.tolist())
        trained, callbacks = network, [Augment(settings, view_settings, seed)]
    module, batches = _objective(trained, learned, environments[keep], settings, seed)
    val = loader(items["val"], settings.batch_size, settings.workers)
    epoch = train(module, batches, val, settings, seed, folder, on_epoch, callbacks)
    fitted = write(network, trained, splits, items, regions, settings, folder, epoch)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return fitted


def labelled(photographs: datasets.Dataset) -> datasets.Dataset:
    """Without the splits that have an unknown label; in an order of the photographs alone."""
    known = polars.col("label").is_not_null().all().over("split")
    part = replace(photographs, table=photographs.table.filter(known).sort("digest", "label"))
    part.__dict__["class_names"] = photographs.class_names
    return part


def new_network(settings: TrainSettings, photographs: datasets.Dataset, view_settings: ViewSettings) -> nn.Module:
    """On the CPU; with a head that knows nothing."""
    network = build_network(settings, len(photographs.class_names), size_px=view_settings.size_px)
    if settings.trainable == "head":
        network.requires_grad_(False)
        head_of(network).requires_grad_(True)
    return network.to(memory_format=torch.channels_last)  # twice as fast


def write(
    network: nn.Module,
    scorer: nn.Module,
    splits: Mapping[str, datasets.Dataset],
    items: Mapping[str, Dataset[Item]],
    regions: Mapping[str, Region | None],
    settings: TrainSettings,
    folder: Path,
    epoch: int,
) -> Fitted:
    """Write a network's weights and its logits of every split.

    Args:
        scorer: The network, or its head where `items` are features.
        epoch: Whose weights they are.
    """
    with whole_file(folder / WEIGHTS) as beside:
        beside.write_bytes(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    logits = _score(scorer, splits, items, regions, settings, folder / LOGITS)
    labels = splits["val"].labels()
    best = {
        "best_epoch": float(epoch),
        "best_val_loss": nll(log_normalize(logits["val"]), labels),
        "best_val_accuracy": float((logits["val"].argmax(axis=1) == labels).mean()),
    }
    return Fitted(folder / WEIGHTS, folder / LOGITS, best)


def _environments(photographs: datasets.Dataset, settings: TrainSettings) -> np.ndarray:
    """Of each training photograph; empty names where the recipe knows none."""
    table = photographs.split("train").table
    if settings.objective == "erm" and settings.environment is None:
        return np.full(len(table), "")
    what = f"train.objective = {settings.objective!r}"
    if settings.trainable != "all":
        raise ConfigError(f'{what} trains the whole network; set train.trainable = "all" (now "head")')
    if settings.environment is None:
        raise ConfigError(f"{what} compares environments; set train.environment to the column that names them")
    if settings.environment not in table.columns or table[settings.environment].null_count():
        raise ConfigError(
            f"{what}: column train.environment = {settings.environment!r} is missing or has gaps in train; "
            f"the table has {', '.join(table.columns)}"
        )
    return table[settings.environment].cast(polars.String).to_numpy()


def _objective(
    trained: nn.Module, learned: Dataset[Item], environments: np.ndarray, settings: TrainSettings, seed: int
) -> tuple[pl.LightningModule, Iterable[Any]]:
    if settings.environment is None:
        return ViewClassifier(trained, settings), loader(learned, settings.batch_size, settings.workers, seed)
    from l2r2.training.domains import DomainClassifier, domain_loader

    names = sorted(set(environments.tolist()))
    batches = domain_loader(learned, environments, settings.batch_size, settings.workers, seed)
    return DomainClassifier(trained, settings, seed, names), batches


def _score(
    scorer: nn.Module,
    splits: Mapping[str, datasets.Dataset],
    items: Mapping[str, Dataset[Item]],
    regions: Mapping[str, Region | None],
    settings: TrainSettings,
    path: Path,
) -> dict[str, Float32[np.ndarray, "n k"]]:
    """Write the logits of every split; give them back by split."""
    classifier = TorchClassifier(scorer)
    logits, frames = {}, []
    for name, part in splits.items():
        batches = loader(items[name], settings.batch_size, settings.workers)
        logits[name] = np.concatenate([classifier.logits(batch.numpy()) for batch, _ in batches])
        digests = part.table["digest"]
        frames.append(
            polars.DataFrame(
                {
                    "digest": digests,
                    "split": name,
                    "group": part.table["group"],
                    "label": part.labels(),
                    "found": [regions[digest] is not None for digest in digests],
                    "logits": logits[name],
                }
            )
        )
    write_table(path, polars.concat(frames))
    return logits
