"""One run of Lightning: stops early, goes on after a kill, keeps the best epoch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from l2r2.config import TrainSettings
from l2r2.errors import ConfigError
from l2r2.training.checkpoints import SafetensorsCheckpointIO

CHECKPOINTS = "checkpoints"
"""Folder of a fit under way."""

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number and train_loss, val_loss, val_accuracy, learning_rate."""


def train(
    module: pl.LightningModule,
    batches: Iterable[Any],
    val_batches: Iterable[Any],
    settings: TrainSettings,
    seed: int,
    folder: Path,
    on_epoch: OnEpoch | None,
    callbacks: Iterable[Callback] = (),
) -> int:
    """Train on one device, the GPU where there is one, until `val_loss` has not fallen for `settings.patience` epochs.

    Goes on from the last whole epoch in `folder`. Leaves the best epoch's weights in `module`, on the CPU.

    Returns:
        The best epoch's number.
    Raises:
        TrainingError: the loss is not finite.
        ConfigError: 16-mixed without a GPU.
    """
    if settings.precision == "16-mixed" and not torch.cuda.is_available():
        raise ConfigError("train.precision = '16-mixed' needs a CUDA GPU; set bf16-mixed or 32-true")
    best = ModelCheckpoint(folder / CHECKPOINTS, "best", monitor="val_loss")
    each = ModelCheckpoint(folder / CHECKPOINTS, "last", enable_version_counter=False)  # save_last skips worse epochs
    patience = _Patience("val_loss", patience=settings.patience)
    with _quiet():
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            precision=settings.precision,
            max_epochs=settings.epochs,
            callbacks=[best, each, patience, _Order(batches), _Chance(seed), _Report(on_epoch), *callbacks],
            plugins=[SafetensorsCheckpointIO()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic="warn",
            default_root_dir=folder,
        )
        last = folder / CHECKPOINTS / "last.ckpt"
        trainer.fit(module, batches, val_batches, ckpt_path=last if last.is_file() else None)
    state = SafetensorsCheckpointIO().load_checkpoint(best.best_model_path)
    module.load_state_dict(state["state_dict"])
    return int(state["epoch"])


class _Patience(EarlyStopping):
    """Stops early, and at once where the fit that is resumed had stopped."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        trainer.should_stop = self.wait_count >= self.patience


class _Order(Callback):
    """Tells the sampler of a resumed fit its epoch before loader processes draw from it; Lightning does so too late."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._sampler: Any = getattr(batches, "sampler", None)

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(checkpoint["epoch"] + 1)


class _Chance(Callback):
    """Draws dropout, stochastic depth and whatever an objective draws from seed, epoch and batch.

    So a resumed fit repeats. An epoch's start is too early: loaders draw, too, and not at the same point when resumed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        place = np.random.SeedSequence([self._seed, trainer.current_epoch, batch_idx])
        torch.manual_seed(int(place.generate_state(1)[0]))


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
