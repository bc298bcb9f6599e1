"""Small drawn photographs as a data set, and what an experiment needs besides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from l2r2.config import Recipe
from l2r2.datasets import Dataset
from l2r2.datasets.user import from_folder
from l2r2.types import Pixels, Region
from tests.tiny import BLUE, CLASSES, DARK, GREEN, RED, make_photo

RECIPE = Recipe(
    name="tiny",
    train={"model": "test_resnet", "weights": "none", "trainable": "all", "epochs": 2, "seeds": (0, 1)},
    view={"size_px": 64, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
)


class Silent:
    """Takes what progress says and shows nothing."""

    def stage(self, text: str, total: int) -> None: ...

    def step(self, done: int, text: str = "") -> None: ...


class MiddleLocalizer:
    """Knows where `make_photo` puts its object."""

    key = "middle"

    def locate(self, photos: Sequence[Pixels]) -> list[Region | None]:
        return [Region((52, 36, 108, 84), 1.0) for _ in photos]


def draw_dataset(photos: Path, out: Path) -> Dataset:
    """36 + 18 + 18 photographs of three colours, in train, val and test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for name, colour in zip(CLASSES, (RED, GREEN, BLUE), strict=True):
            (photos / split / name).mkdir(parents=True)
            for i in range(count):
                photo = make_photo(colour, DARK).astype(int) + rng.integers(-9, 10, size=(120, 160, 3))
                Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(photos / split / name / f"{i}.png")
    return from_folder(photos, out)
