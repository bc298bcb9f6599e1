"""Photographs → views → batches. Order and mirroring depend on seed and epoch alone, so that a resumed fit repeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from l2r2 import datasets
from l2r2.config import ImageSettings, ViewSettings
from l2r2.images import read
from l2r2.types import Region, View
from l2r2.views import normalize, render

Item = tuple[torch.Tensor, int]


class ViewDataset(Dataset[Item]):
    """One view of every photograph of a split, rendered when asked for.

    Items are (3 × size × size float32, label); the label is -1 where `labelled` is false.
    """

    def __init__(
        self,
        photographs: datasets.Dataset,
        regions: Mapping[str, Region | None],
        view: View,
        settings: ViewSettings,
        images: ImageSettings,
    ) -> None:
        self._paths = photographs.paths()
        self._regions = [regions[digest] for digest in photographs.table["digest"]]
        self.labels = photographs.labels()
        self._view, self._settings, self._images = view, settings, images

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Item:
        square = render(read(self._paths[i], self._images), self._regions[i], self._view, self._settings)
        return torch.from_numpy(normalize([square], self._settings)[0]), int(self.labels[i])


class TensorItems(Dataset[Item]):
    """Features at hand, one row a photograph (or mirrored photograph)."""

    def __init__(self, features: torch.Tensor, labels: np.ndarray) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> Item:
        return self.features[i], int(self.labels[i])


class EpochOrder(Sampler[int]):
    """A permutation drawn from seed and epoch; Lightning calls `set_epoch`."""

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed, self._epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self._seed, self._epoch]).permutation(self._length).tolist())

    def __len__(self) -> int:
        return self._length


def loader(items: Dataset[Item], batch_size: int, workers: int, seed: int | None = None) -> DataLoader[Item]:
    """Batches in order, or shuffled by `seed`."""
    sampler = None if seed is None else EpochOrder(len(items), seed)  # type: ignore[arg-type]
    return DataLoader(
        items, batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, pin_memory=False
    )
