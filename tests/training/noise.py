"""Photographs of coloured noise, a network of a third of a million weights, and fits of a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from l2r2.config import ImageSettings, TrainSettings, ViewSettings
from l2r2.datasets import Dataset
from l2r2.datasets.user import from_folder
from l2r2.training import Fitted, fit_classifier
from l2r2.types import Region, View

COLOURS = {"blue": (110, 110, 150), "green": (110, 150, 110), "red": (150, 110, 110)}
COUNTS = {"train": 8, "val": 4, "test": 4}
"""Photographs of each class."""

VIEW = ViewSettings(size_px=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TRAIN = TrainSettings(
    model="test_resnet",
    weights="none",
    trainable="all",
    epochs=4,
    batch_size=8,
    learning_rate=1e-2,
    crop_scale=0.5,
    color_jitter=0.1,
    seeds=(0,),
)
TRAINABLE = ("all", "head")


def draw_noise(folder: Path) -> Dataset:
    """Three classes of 64-pixel noise around a colour."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name, colour in COLOURS.items():
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                photo = np.array(colour) + rng.normal(0, 40, size=(64, 64, 3))
                Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / "photos" / split / name / f"{i}.png")
    return from_folder(folder / "photos", folder / "data")


def no_regions(dataset: Dataset) -> dict[str, Region | None]:
    """Nothing is found in any photograph."""
    return dict.fromkeys(dataset.table["digest"])


def half_found(dataset: Dataset) -> dict[str, Region | None]:
    """A region in every second photograph of the table."""
    middle = Region((16.0, 16.0, 48.0, 48.0), 1.0)
    return {digest: middle if i % 2 else None for i, digest in enumerate(dataset.table["digest"])}


def fit(
    dataset: Dataset,
    folder: Path,
    *,
    view: View = View.FULL,
    regions: Mapping[str, Region | None] | None = None,
    seed: int = 0,
    on_epoch: Any = None,
    features: Path | None = None,
    **changes: Any,
) -> Fitted:
    """Fit with `TRAIN`, some of its fields changed."""
    settings = TRAIN.model_copy(update=changes)
    known = no_regions(dataset) if regions is None else regions
    return fit_classifier(dataset, known, view, settings, VIEW, ImageSettings(), seed, folder, on_epoch, features)
