"""Fitting across environments: one batch of each a step, and an objective that sees them apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from l2r2.config import TrainSettings
from l2r2.errors import ConfigError, DatasetError
from l2r2.training.augment import Augment
from l2r2.training.loading import Item
from l2r2.training.module import ViewClassifier
from l2r2.training.objectives import Batch, Descent, Network, Step, make_objective

_ORDER, _STEP, _FIRST = 1, 2, 3
"""Keep the streams of random numbers of one seed and epoch apart."""


class DomainClassifier(ViewClassifier):
    """Trains `network`, a timm model, by `settings.objective` on batches of `domain_loader`.

    The objective's state is in the checkpoint, and every random number comes from seed, epoch and step, so that a
    resumed fit repeats. The first fit of JTT is not resumed but done again.
    """

    def __init__(self, network: nn.Module, settings: TrainSettings, seed: int, environments: Sequence[str]) -> None:
        """Take up the objective.

        Args:
            environments: Names; repeated ones count once.
        Raises:
            ConfigError: the objective lacks such a setting, or the batches are too small for it.
        """
        super().__init__(network, settings)
        self.automatic_optimization = False
        self.objective = make_objective(
            settings.objective,
            settings.objective_settings,
            len(set(environments)),
            label_smoothing=settings.label_smoothing,
        )
        if settings.batch_size < self.objective.least_batch:
            raise ConfigError(
                f"train.batch_size = {settings.batch_size}: objective {settings.objective} expects at least "
                f"{self.objective.least_batch} examples of each environment"
            )
        self._seed = seed
        self._parts = Network(network)

    def on_train_start(self) -> None:
        self.objective.begin(self._parts, _Rehearsal(self))

    def training_step(self, batch: Sequence[Batch], index: int) -> None:  # type: ignore[override]
        step = self.step(self.current_epoch, index, self._settings.epochs, _STEP)
        loss = self.objective.update(self._parts, self.descent(), batch, step)
        self._check("training", torch.tensor(loss), index)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=sum(len(b.labels) for b in batch))
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()

    def descent(self) -> Descent:
        """Steps of the optimizer, in the trainer's precision."""
        return Descent(self.optimizers(), self.manual_backward)

    def step(self, epoch: int, index: int, epochs: int, stream: int) -> Step:
        """The step of that epoch and batch, with random numbers of its own, also for dropout and stochastic depth."""
        steps = int(self.trainer.num_training_batches)
        rng = np.random.default_rng([self._seed, epoch, index, stream])
        torch.manual_seed(int(rng.integers(2**63)))
        return Step(epoch * steps + index, epochs * steps, rng)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["objective"] = self.objective.state_dict()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(checkpoint["objective"])


class _Rehearsal:
    """A fit before the fit, with the trainer's own data and optimizer; no metric is logged, no schedule moves."""

    def __init__(self, module: DomainClassifier) -> None:
        self._module, self._trainer = module, module.trainer

    def train(self, epochs: int) -> None:
        module, trainer, loader = self._module, self._trainer, self._trainer.train_dataloader
        network, descent = Network(module.network), module.descent()
        erm = make_objective("erm", {}, 1, label_smoothing=module.objective.label_smoothing)
        groups = trainer.optimizers[0].param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["initial_lr"]
        sampler = copy.copy(loader.sampler)  # the trainer iterates over its own already
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            batches_of_epoch = DataLoader(loader.dataset, None, sampler=sampler, num_workers=loader.num_workers)
            for index, batches in enumerate(batches_of_epoch):
                moved = [_to(batch, module.device) for batch in batches]
                step = module.step(epoch, index, epochs, _FIRST)
                for callback in trainer.callbacks:
                    if isinstance(callback, Augment):
                        callback.on_train_batch_start(trainer, module, moved, step.number)
                with trainer.precision_plugin.train_step_context():
                    loss = erm.update(network, descent, moved, step)
                module._check("first", torch.tensor(loss), index)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        descent.forget()

    def examples(self) -> Iterator[Batch]:
        loader = self._trainer.train_dataloader
        size = self._module._settings.batch_size
        order = [
            [part] for part in np.array_split(np.arange(len(loader.dataset)), math.ceil(len(loader.dataset) / size))
        ]
        for (batch,) in DataLoader(loader.dataset, None, sampler=order, num_workers=loader.num_workers):
            yield _to(batch, self._module.device)


class EnvironmentOrder(Sampler[list[list[int]]]):
    """For each step, as many positions of each environment, drawn from seed and epoch; Lightning calls `set_epoch`.

    The largest environment decides how many steps an epoch has; others, and what it lacks to fill its last batch, start
    over in another order.
    """

    def __init__(self, environments: Sequence[str] | np.ndarray, batch_size: int, seed: int) -> None:
        names = np.asarray(environments)
        self._positions = [np.flatnonzero(names == name) for name in np.unique(names)]
        self._batch_size, self._seed, self._epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[list[int]]]:
        needed = len(self) * self._batch_size
        orders = []
        for number, positions in enumerate(self._positions):
            rng = np.random.default_rng([self._seed, self._epoch, number, _ORDER])
            rounds = [rng.permutation(positions) for _ in range(math.ceil(needed / len(positions)))]
            orders.append(np.concatenate(rounds)[:needed].reshape(len(self), self._batch_size))
        for step in range(len(self)):
            yield [order[step].tolist() for order in orders]

    def __len__(self) -> int:
        return math.ceil(max(map(len, self._positions)) / self._batch_size)


class _Batches(Dataset[list[Batch]]):
    """Looked up by the positions of each environment's batch."""

    def __init__(self, items: Dataset[Item], environments: np.ndarray) -> None:
        self._items, self._environments = items, environments

    def __len__(self) -> int:
        return len(self._environments)

    def __getitem__(self, step: Iterable[Sequence[int]]) -> list[Batch]:
        batches = []
        for positions in step:
            images, labels = zip(*(self._items[int(i)] for i in positions), strict=True)
            name = str(self._environments[positions[0]])
            batches.append(Batch(torch.stack(images), torch.tensor(labels), torch.as_tensor(positions), name))
        return batches


def domain_loader(
    items: Dataset[Item], environments: np.ndarray, batch_size: int, workers: int, seed: int
) -> DataLoader[list[Batch]]:
    """Each step one batch of `batch_size` of each environment, in the order of the environments' names.

    Args:
        environments: Each item's.
    Raises:
        DatasetError: items and environments are not as many.
    """
    if len(items) != len(environments):  # type: ignore[arg-type]
        raise DatasetError(
            f"{len(environments)} environments for {len(items)} training items; expected one each"  # type: ignore[arg-type]
        )
    return DataLoader(
        _Batches(items, environments),
        batch_size=None,
        sampler=EnvironmentOrder(environments, batch_size, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _to(batch: Batch, device: torch.device) -> Batch:
    images, labels, positions, environment = batch
    return Batch(images.to(device), labels.to(device), positions.to(device), environment)
