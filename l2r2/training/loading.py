"""Photographs → views → batches. The order depends on seed and epoch alone, so that a resumed fit repeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from l2r2 import datasets
from l2r2.config import ImageSettings, ViewSettings
from l2r2.errors import DatasetError
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


class ViewsDataset(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Several views of every photograph; it is decoded once.

    Items are (v × 3 × size × size float32, `counts` of that row, label).

    Attributes:
        counts: Which of the images count, "n v".
    """

    def __init__(
        self,
        photographs: datasets.Dataset,
        regions: Mapping[str, Region | None],
        views: Sequence[View],
        settings: ViewSettings,
        images: ImageSettings,
        counts: np.ndarray,
    ) -> None:
        self._paths = photographs.paths()
        self._regions = [regions[digest] for digest in photographs.table["digest"]]
        self._labels = photographs.labels()
        self.counts = torch.from_numpy(counts)
        self._views, self._settings, self._images = views, settings, images

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        photo, region = read(self._paths[i], self._images), self._regions[i]
        squares = [render(photo, region, view, self._settings) for view in self._views]
        return torch.from_numpy(normalize(squares, self._settings)), self.counts[i], int(self._labels[i])


def learns(photographs: datasets.Dataset, regions: Mapping[str, Region | None], view: View) -> np.ndarray:
    """Which rows a view's classifier may learn from: FG those with a region, every other view all.

    Raises:
        DatasetError: none.
    """
    if not view.startswith("FG"):
        return np.ones(len(photographs), dtype=bool)
    found = np.array([regions[digest] is not None for digest in photographs.table["digest"]])
    if not found.any():
        raise DatasetError(f"no training photograph has a region, so {view} has nothing to learn from")
    return found


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


def loader(items: Dataset[Any], batch_size: int, workers: int, seed: int | None = None) -> DataLoader[Any]:
    """Batches in order, or shuffled by `seed`."""
    return DataLoader(
        items,
        batch_size,
        sampler=None if seed is None else EpochOrder(len(items), seed),  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
