"""Parts that answer from a table, so that a test knows every number.

A fake photograph is one colour, and the colour is its number: whatever is cropped, resized or batched, a fake
classifier and a fake localizer still know which photograph they see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from l2r2.calibration import Temperature
from l2r2.cascade import Policy
from l2r2.config import ViewSettings
from l2r2.fusion import MaxScaledConfidence, Operator
from l2r2.priors import Priors, count_priors
from l2r2.recognizer import Recognizer
from l2r2.types import Photos, Pixels, Region, Stage, View

RAW = ViewSettings(size_px=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""View settings under which a pixel of value v arrives as v / 255."""

BOX = Region((8.0, 4.0, 24.0, 20.0), 0.75)
"""A region inside every fake photograph."""


def photo(number: int, height: int = 32, width: int = 48) -> Pixels:
    """The photograph with this number, 0 to 255."""
    return np.full((height, width, 3), number, np.uint8)


class TableLocalizer:
    """Finds in photograph i what row i of its table says; remembers what it was shown."""

    key = "table"

    def __init__(self, regions: Sequence[Region | None]) -> None:
        self.regions = list(regions)
        self.seen: list[int] = []

    def locate(self, photos: Photos) -> list[Region | None]:
        numbers = [int(pixels[0, 0, 0]) for pixels in photos]
        self.seen += numbers
        return [self.regions[number] for number in numbers]


class TableClassifier:
    """Gives photograph i the logits of row i of its table; remembers what it was shown. Needs `RAW` views."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = np.asarray(table, np.float32)
        self.seen: list[int] = []

    def logits(self, images: np.ndarray) -> np.ndarray:
        middle = images.shape[-1] // 2
        numbers = np.rint(images[:, 0, middle, middle] * 255).astype(int)
        self.seen += numbers.tolist()
        return self.table[numbers]


class PixelClassifier:
    """Logits that depend on every pixel through a fixed random projection."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        self.classes = classes
        self.seed = seed

    def logits(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1)
        weights = np.random.default_rng(self.seed).standard_normal((flat.shape[1], self.classes)).astype(np.float32)
        rows = [(row[:, None] * weights).sum(axis=0) for row in flat]
        return np.stack(rows) / np.float32(10) if rows else np.empty((0, self.classes), np.float32)


class FunctionSession:
    """A runtime session whose model is a Python function of its one input."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function
        self.feeds: list[Mapping[str, np.ndarray]] = []

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.feeds.append(feed)
        (value,) = feed.values()
        return {"output": self.function(value)}


def no_priors(classes: int) -> Priors:
    """Nothing is known of any metadata."""
    return count_priors(np.arange(classes), {}, classes)


def make_recognizer(
    fg: np.ndarray,
    full: np.ndarray,
    regions: Sequence[Region | None],
    *,
    threshold: float = 0.5,
    operator: Operator | None = None,
    priors: Priors | None = None,
    temperature: float = 1.0,
) -> Recognizer:
    """A recognizer of photographs 0 … n - 1, whose logits and regions are the rows of tables."""
    classes = np.shape(fg)[1]
    return Recognizer(
        class_names=tuple(f"class {k}" for k in range(classes)),
        localizer=TableLocalizer(regions),
        classifiers={Stage.FG: TableClassifier(fg), Stage.FULL: TableClassifier(full)},
        views={Stage.FG: View.FG_C, Stage.FULL: View.FULL},
        view_settings=RAW,
        policy=Policy(
            {stage: Temperature(np.array([temperature])) for stage in Stage},
            operator or MaxScaledConfidence(),
            threshold,
        ),
        priors=priors or no_priors(classes),
    )
