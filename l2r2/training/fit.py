"""Fit one classifier: features once where the backbone is frozen, resume after a kill, logits of every split."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import torch
from jaxtyping import Float32
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file, save
from torch import nn

from l2r2 import datasets
from l2r2.classification.timm_model import build_network
from l2r2.config import ImageSettings, TrainSettings, ViewSettings
from l2r2.errors import DatasetError
from l2r2.files import whole_file, write_table
from l2r2.logspace import log_normalize
from l2r2.metrics import nll
from l2r2.training.checkpoints import SafetensorsCheckpointIO
from l2r2.training.loading import Item, TensorItems, ViewDataset, loader
from l2r2.training.module import ViewClassifier
from l2r2.types import Region, View

WEIGHTS, LOGITS = "model.safetensors", "logits.parquet"

FEATURE_BATCH = 8
"""Photographs at once through a frozen backbone; larger batches only make the allocator return its memory."""

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number and train_loss, val_loss, val_accuracy, learning_rate."""


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
        features: Where a frozen, pretrained backbone's features are kept for the next seed; None: nowhere.
    Raises:
        TrainingError: the loss is not finite.
        DatasetError: no training photograph has a region.
    """
    pl.seed_everything(seed, workers=True, verbose=False)
    network = build_network(settings, len(photographs.class_names)).to(
        memory_format=torch.channels_last
    )  # twice as fast
    photographs = replace(photographs, table=photographs.table.sort("digest", "label"))  # features know no other order
    splits = {}
    for name in sorted(set(photographs.table["split"])):
        part = photographs.split(name)
        if part.table["label"].null_count() == 0:
            splits[name] = part
    items: dict[str, Any] = {
        name: ViewDataset(part, regions, view, view_settings, images) for name, part in splits.items()
    }
    frozen = settings.trainable == "head"
    if frozen:
        pretrained = settings.checkpoint is not None or settings.weights != "none"
        items = _features(network, items, settings, features if pretrained else None)
    keep = np.arange(len(splits["train"]))
    if view.startswith("FG"):
        keep = np.array([i for i, digest in enumerate(splits["train"].table["digest"]) if regions[digest] is not None])
        if len(keep) == 0:
            raise DatasetError(f"no training photograph has a region, so {view} has nothing to learn from")
    train = _training_items(items, keep, mirrored=frozen and settings.flip)
    trained: nn.Module = network.get_classifier() if frozen else network  # type: ignore[operator]
    mirror = settings.flip and not frozen
    epoch = _train(trained, train, items["val"], settings, seed, folder, mirror=mirror, on_epoch=on_epoch)
    with whole_file(folder / WEIGHTS) as beside:
        beside.write_bytes(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    logits = _score(trained, splits, items, regions, settings, folder / LOGITS)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    labels = splits["val"].labels()
    best = {
        "best_epoch": float(epoch),
        "best_val_loss": nll(log_normalize(logits["val"]), labels),
        "best_val_accuracy": float((logits["val"].argmax(axis=1) == labels).mean()),
    }
    return Fitted(folder / WEIGHTS, folder / LOGITS, best)


def _features(
    network: nn.Module, items: Mapping[str, ViewDataset], settings: TrainSettings, kept: Path | None
) -> dict[str, TensorItems]:
    """What the frozen backbone makes of each photograph; of train also mirrored, as "train/mirrored"."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in network.get_classifier().parameters():  # type: ignore[operator]
        parameter.requires_grad_(True)
    network.eval()
    if kept is not None and kept.is_file():
        tensors = load_file(kept)
    else:
        tensors = {}
        with torch.inference_mode():
            for name, dataset in items.items():
                plain, mirrored = [], []
                for batch, _ in loader(dataset, FEATURE_BATCH, settings.workers):
                    plain.append(_pooled(network, batch))
                    if name == "train" and settings.flip:
                        mirrored.append(_pooled(network, batch.flip(-1)))
                tensors[name] = torch.cat(plain).clone()
                if mirrored:
                    tensors["train/mirrored"] = torch.cat(mirrored).clone()
        if kept is not None:
            with whole_file(kept) as beside:
                beside.write_bytes(save(tensors))
    return {name: TensorItems(tensor, items[name.split("/")[0]].labels) for name, tensor in tensors.items()}


def _pooled(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return pooled


def _training_items(items: Mapping[str, Any], keep: np.ndarray, *, mirrored: bool) -> Any:
    if mirrored:
        both = [items["train"], items["train/mirrored"]]
        features = torch.cat([part.features[keep] for part in both])
        return TensorItems(features, np.concatenate([part.labels[keep] for part in both]))
    return torch.utils.data.Subset(items["train"], keep.tolist())


def _train(
    trained: nn.Module,
    train: torch.utils.data.Dataset[Item],
    val: torch.utils.data.Dataset[Item],
    settings: TrainSettings,
    seed: int,
    folder: Path,
    *,
    mirror: bool,
    on_epoch: OnEpoch | None,
) -> int:
    """Run Lightning; leaves the best epoch's weights in `trained` and gives its number."""
    module = ViewClassifier(trained, settings, seed, mirror=mirror)
    best = ModelCheckpoint(folder / "checkpoints", "best", monitor="val_loss")
    each = ModelCheckpoint(folder / "checkpoints", "last", enable_version_counter=False)  # save_last skips worse epochs
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=settings.epochs,
            callbacks=[
                best,
                each,
                _Patience("val_loss", patience=settings.patience),
                _Report(on_epoch),
            ],
            plugins=[SafetensorsCheckpointIO()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic="warn",
            default_root_dir=folder,
        )
        last = folder / "checkpoints" / "last.ckpt"
        trainer.fit(
            module,
            loader(train, settings.batch_size, settings.workers, seed),
            loader(val, settings.batch_size, settings.workers),
            ckpt_path=last if last.is_file() else None,
        )
    state = SafetensorsCheckpointIO().load_checkpoint(best.best_model_path)
    module.load_state_dict(state["state_dict"])
    return int(state["epoch"])


def _score(
    trained: nn.Module,
    splits: Mapping[str, datasets.Dataset],
    items: Mapping[str, Any],
    regions: Mapping[str, Region | None],
    settings: TrainSettings,
    path: Path,
) -> dict[str, Float32[np.ndarray, "n k"]]:
    """Write the logits of every split; give them back by split."""
    trained.eval()
    logits, frames = {}, []
    for name, part in splits.items():
        with torch.inference_mode():
            batches = loader(items[name], settings.batch_size, settings.workers)
            logits[name] = torch.cat([trained(batch) for batch, _ in batches]).numpy().astype(np.float32)
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


class _Patience(EarlyStopping):
    """Stops early, and at once where the fit that is resumed had stopped."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        trainer.should_stop = self.wait_count >= self.patience


class _Report(Callback):
    """Passes each epoch's metrics on."""

    def __init__(self, on_epoch: OnEpoch | None) -> None:
        self._on_epoch = on_epoch
        self._learning_rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])  # at the end it is the next epoch's

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self._on_epoch is not None:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._on_epoch(trainer.current_epoch, metrics | {"learning_rate": self._learning_rate})


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hints about loggers, workers and hardware are not for our users."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torch.utils.data")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*lr_scheduler.step.*|.*weights_only.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
