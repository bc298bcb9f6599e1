"""What a caller may ask for beside the class, and what a photograph's recognition gives, wherever it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from l2r2.types import Prediction


@dataclass(frozen=True, slots=True)
class Options:
    """How one photograph is to be recognized; the defaults are those of a request that says nothing.

    Attributes:
        localizer_threshold: Confidence below which a foreground is not taken, [0, 1]; None: the bundle's.
        max_detections: Answers wanted, one a foreground, 1 to 16.
        box: Where the foreground is, xyxy; None: to be located.
        box_normalized: Whether `box` is in shares of width and height, [0, 1], instead of pixels.
        crop: Whether the image is a ready-made crop, all foreground.
        explanation, prediction_set: Whether the answer has them.
        thumbnail_px: Longest side of a JPEG of each region, 32 to 512; 0: none.
        mask: Whether regions carry their mask, where the localizer makes one.
    """

    localizer_threshold: float | None = None
    max_detections: int = 1
    box: tuple[float, float, float, float] | None = None
    box_normalized: bool = False
    crop: bool = False
    explanation: bool = True
    prediction_set: bool = True
    thumbnail_px: int = 0
    mask: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A prediction and what made it.

    Attributes:
        prediction: Its `latency_ms` begins with "decode". From a server its region has a mask only where one was asked
            for, and that is small.
        bundle_name: Of the bundle that answered.
        bundle_version: Twelve hexadecimal digits that change with any file of the bundle.
        unrecognized: Metadata source → value, for each of `prediction.unrecognized`.
        detections: One a foreground where several were asked for, the first of which is `prediction`; else empty.
        thumbnails: JPEG of each region, in the order of the detections; empty where none were asked for.
    """

    prediction: Prediction
    bundle_name: str
    bundle_version: str
    unrecognized: Mapping[str, str] = field(default_factory=dict)
    detections: tuple[Prediction, ...] = ()
    thumbnails: tuple[bytes, ...] = ()
