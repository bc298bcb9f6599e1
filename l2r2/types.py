"""The values that travel: views, regions, metadata, predictions, and the protocols of the parts that make them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from l2r2.errors import InputError, MetadataError

Pixels = UInt8[np.ndarray, "h w 3"]
"""An upright photograph: HWC, RGB, [0, 255]."""

Photos = Sequence[UInt8[np.ndarray, "_h _w 3"]]
"""Photographs as `Pixels`, each of a size of its own."""

Mask = Bool[np.ndarray, "h w"]
"""True where the foreground is; in the frame of the upright photograph."""

Logits = Float32[np.ndarray, "n k"]
"""Unnormalised class scores, any range; columns in the order of the bundle's class names."""

Metadata = Mapping[str, str]
"""What is known besides the pixels: source name (habitat, substrate, month, …) → value. A source that is not known is
absent. Months are "1" to "12"."""

MONTHS = frozenset(str(month) for month in range(1, 13))
"""What a month may be."""


class View(StrEnum):
    """What of a photograph a classifier looks at. Source: the paper, appendix B.2."""

    FULL = "FULL"
    """The whole photograph."""
    FG_C = "FG_C"
    """The foreground's box with a margin, padded to a square."""
    FG_M = "FG_M"
    """As FG_C, the background's pixels filled."""
    BG_S = "BG_S"
    """The whole photograph, the foreground's mask filled: its shape stays."""
    BG_B = "BG_B"
    """The whole photograph, the foreground's box filled."""
    CENTERCROP = "CENTERCROP"
    """The middle of the photograph, wherever the foreground is: what localizing is held against (section 5.2)."""


class Stage(StrEnum):
    """A classifier's place in the cascade; also the name of its evidence."""

    FG = "FG"
    FULL = "FULL"


class Caution(StrEnum):
    """Why an answer deserves a second look."""

    NOTHING_FOUND = "nothing_found"
    """No foreground was located; the answer is FULL's alone."""
    FG_UNSURE_FULL_SURE = "fg_unsure_full_sure"
    """The background may have decided: FULL is sure of what FG is not (the paper's figure 10)."""
    FLIPPED_BY_PRIOR = "flipped_by_prior"
    """Without the metadata the answer would be another class."""
    HAZARD = "hazard"
    """A hazardous class is possible and the foreground is unsure: the answer is withheld (`Prediction.withheld`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Where the foreground is.

    Attributes:
        box_xyxy_px: Left, top, right, bottom in pixels of the upright photograph; right and bottom are exclusive.
        score: The localizer's confidence, [0, 1].
        mask: Optional, of the photograph's height and width.
    """

    box_xyxy_px: tuple[float, float, float, float]
    score: float
    mask: Mask | None = None

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.box_xyxy_px
        if not all(math.isfinite(v) for v in self.box_xyxy_px) or x1 <= x0 or y1 <= y0:
            raise InputError(f"box {self.box_xyxy_px} is empty; expected left < right and top < bottom, in pixels")
        if not 0.0 <= self.score <= 1.0:
            raise InputError(f"region score is {self.score}; expected a number in [0, 1]")

    def resized(self, before_px: tuple[int, int], after_px: tuple[int, int]) -> Region:
        """The same region of the photograph at another size; width and height. The mask takes the nearest pixel."""
        if before_px == after_px:
            return self
        across, down = after_px[0] / before_px[0], after_px[1] / before_px[1]
        x0, y0, x1, y1 = self.box_xyxy_px
        mask = self.mask
        if mask is not None:
            rows = (np.arange(after_px[1]) + 0.5) * mask.shape[0] / after_px[1]
            columns = (np.arange(after_px[0]) + 0.5) * mask.shape[1] / after_px[0]
            mask = mask[rows.astype(int)[:, None], columns.astype(int)]
        return Region((x0 * across, y0 * down, x1 * across, y1 * down), self.score, mask)


def make_metadata(
    habitat: str | None = None, substrate: str | None = None, month: int | str | None = None, **others: str | None
) -> Metadata:
    """Check what is known of a photograph and drop what is not.

    Args:
        habitat, substrate, others: Free text; compared with the bundle's vocabulary. None or blank is "not known".
        month: 1 to 12.
    Raises:
        MetadataError: month is no whole number from 1 to 12.
    """
    known = {"habitat": habitat, "substrate": substrate, **others}
    values = {source: value.strip() for source, value in known.items() if value is not None and value.strip()}
    if month is not None and str(month).strip():
        text = str(month).strip()
        values["month"] = text.removeprefix("0")
        if values["month"] not in MONTHS:
            raise MetadataError(f"month is {text[:20]!r}; expected a whole number from 1 (January) to 12, or nothing")
    return values


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class of an answer.

    Attributes:
        index: Column in the logits.
        name: As in the training table.
        probability: Calibrated, [0, 1]; over all classes they sum to 1.
    """

    index: int
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the answer and not its rival, in natural log-odds.

    Attributes:
        rival: The second most probable class.
        total: log p(answer) - log p(rival).
        parts: FG, FULL and each metadata source that the bundle uses → what it added; they sum to `total`. A stage that
            did not run and a value never seen added 0.
    """

    rival: str
    total: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PredictionSet:
    """Classes among which the right one is, as often as `coverage` says.

    Attributes:
        members: Most probable first, at least one; at most `MAX_MEMBERS`.
        size: How many there are; those beyond `MAX_MEMBERS` are not listed.
        coverage: Share of photographs like those of validation whose class is in their set, each group counting the
            same, (0, 1).
    """

    members: tuple[Candidate, ...]
    size: int
    coverage: float


MAX_MEMBERS = 100
"""Classes of a prediction set that are listed; a set of more says nothing that a person could use."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """An answer.

    Attributes:
        candidates: Most probable first, at least one.
        region: In pixels of the upright photograph; None when nothing was found.
        size_px: Width and height of the upright photograph.
        stages: Classifiers that ran, in order.
        stage_confidence: The highest probability of each stage that ran, metadata included, [0, 1].
        stage_candidates: What each of them says alone, metadata included, as `candidates`.
        explanation: None only where a caller asked for none.
        cautions: Most serious first.
        prediction_set: What else the answer may be; None: the bundle has no sets.
        withheld: The first candidate is no answer: a hazardous class is possible and the foreground is unsure.
        degraded: FULL was wanted and could not be had: this is what FG alone says.
        unrecognized: Metadata sources whose value the bundle has never seen (or whose name it does not use); neutral.
        latency_ms: Stage → wall time. In a batch, a stage's time is divided by the photographs it ran for.
    """

    candidates: tuple[Candidate, ...]
    region: Region | None
    size_px: tuple[int, int]
    stages: tuple[Stage, ...]
    stage_confidence: Mapping[Stage, float]
    explanation: Explanation | None
    cautions: tuple[Caution, ...]
    unrecognized: tuple[str, ...]
    prediction_set: PredictionSet | None = None
    withheld: bool = False
    degraded: bool = False
    stage_candidates: Mapping[Stage, tuple[Candidate, ...]] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> Candidate:
        return self.candidates[0]


@runtime_checkable
class Session(Protocol):
    """A model in some runtime. Source of the shape: one `infer(feed)`, so that runtimes swap."""

    def infer(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run once. Feed and result map tensor names to arrays whose first axis is the batch."""
        ...


@runtime_checkable
class Localizer(Protocol):
    """Finds the foreground."""

    @property
    def key(self) -> str:
        """Changes whenever the regions may: name, weights and settings. At most 64 characters."""
        ...

    def locate(self, photos: Photos) -> list[Region | None]:
        """One region or None a photograph, in order; an empty sequence gives an empty list."""
        ...


@runtime_checkable
class InstanceLocalizer(Localizer, Protocol):
    """Tells each thing that it finds apart; every localizer in a bundle does."""

    def instances(self, photos: Photos, min_score: float | None = None, *, masks: bool = False) -> list[list[Region]]:
        """All that counts in each photograph, the foremost first.

        Args:
            min_score: In place of the localizer's own threshold, [0, 1].
            masks: Whether regions carry one, where that takes no other network.
        """
        ...

    def decide(self, photo: Pixels, instances: Sequence[Region]) -> Region | None:
        """The region that a photograph's instances make; `locate` is this of `instances`."""
        ...


@runtime_checkable
class InformedLocalizer(Protocol):
    """Finds the foreground knowing more than the pixels say: ground truth, or the label's words. For experiments."""

    @property
    def key(self) -> str:
        """As `Localizer.key`."""
        ...

    def locate_known(self, photo: Pixels, row: Mapping[str, object]) -> Region | None:
        """The region of one photograph, whose row of the data set's table is at hand; "words" is the label in words."""
        ...


@runtime_checkable
class CandidateLocalizer(Protocol):
    """Finds what words say, one region each (the paper's appendix C.1). For experiments."""

    @property
    def key(self) -> str:
        """As `Localizer.key`."""
        ...

    def locate_words(self, photo: Pixels, words: Sequence[str]) -> list[Region | None]:
        """One region or None a word, in order."""
        ...


@runtime_checkable
class Budget(Protocol):
    """What is left to spend on a photograph; a service's deadline is one. Asked before each step that costs."""

    def require(self) -> None:
        """Raise DeadlinePassed when nobody waits for the answer any more."""
        ...

    def affords(self, stage: Stage) -> bool:
        """Whether that classifier still fits."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """Turns rendered views into logits."""

    def logits(self, images: Float32[np.ndarray, "n 3 size size"]) -> Logits:
        """Rows in order; n = 0 gives a 0 × k array."""
        ...
