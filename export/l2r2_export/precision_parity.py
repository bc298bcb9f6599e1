"""What a lower precision changed: figures on a validation slice, tolerances a precision, and a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from l2r2.errors import InputError, ParityError
from l2r2.logspace import log_normalize
from l2r2.manifest import Precision as Precision  # noqa: PLC0414  others take it from here
from l2r2.metrics import Labels, bootstrap
from l2r2.types import Logits, Region
from l2r2_export.parity import box_iou

Figures = dict[str, float]
"""The fields of `LogitParity` or `RegionParity`."""


@dataclass(frozen=True, slots=True)
class LogitParity:
    """A classifier in another precision against itself in FP32.

    Attributes:
        max_abs, mean_abs, q99_abs: Of the absolute logit difference; q99 is its 0.99 quantile.
        kl, mean_kl: Largest and mean KL(FP32 ‖ other) of a photograph, in nats.
        top1_agreement: Share of photographs with the same top class, [0, 1].
        accuracy: Of the other precision, [0, 1].
        accuracy_change: Other less FP32, [-1, 1]; negative is a loss.
        accuracy_change_low, accuracy_change_high: Its 95 % paired bootstrap interval, whole groups drawn.
        n, groups: Photographs, and groups that they are of.
    """

    max_abs: float
    mean_abs: float
    q99_abs: float
    kl: float
    mean_kl: float
    top1_agreement: float
    accuracy: float
    accuracy_change: float
    accuracy_change_low: float
    accuracy_change_high: float
    n: float
    groups: float


@dataclass(frozen=True, slots=True)
class RegionParity:
    """A localizer in another precision, or at another size, against itself.

    Attributes:
        mean_iou, q05_iou, min_iou: Of the two boxes where both found one, [0, 1]; q05 is the 0.05 quantile. 1 where
            there is no such photograph.
        found_agreement: Share of photographs where both or neither found something, [0, 1].
        mean_score_change: Mean absolute difference of the scores where both found something, [0, 1].
        n: Photographs.
    """

    mean_iou: float
    q05_iou: float
    min_iou: float
    found_agreement: float
    mean_score_change: float
    n: float


class Limits(Protocol):
    """What a precision may change."""

    def broken(self, figures: Mapping[str, float]) -> list[str]:
        """What is outside, each as "figure value, at most/at least limit"; a figure that is no number is outside."""
        ...


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a precision may change of a classifier.

    Attributes:
        min_agreement: Of the top classes, [0, 1].
        max_accuracy_loss: A share, [0, 1]; compared with the point estimate, since the interval of a slice of some
            hundred photographs is wider than any loss worth accepting. The certificate has the interval.
        max_mean_kl: In nats; bounds the mean change of a probability by √(max_mean_kl / 2) (Pinsker's inequality).
    """

    min_agreement: float
    max_accuracy_loss: float
    max_mean_kl: float

    def broken(self, figures: Mapping[str, float]) -> list[str]:
        """As `Limits.broken`."""
        return outside(
            figures,
            at_most={"mean_kl": self.max_mean_kl},
            at_least={"top1_agreement": self.min_agreement, "accuracy_change": -self.max_accuracy_loss},
        )


@dataclass(frozen=True, slots=True)
class RegionTolerance:
    """What a precision may change of a localizer.

    Attributes:
        min_mean_iou, min_found_agreement: [0, 1].
    """

    min_mean_iou: float
    min_found_agreement: float

    def broken(self, figures: Mapping[str, float]) -> list[str]:
        """As `Limits.broken`."""
        return outside(
            figures,
            at_most={},
            at_least={"mean_iou": self.min_mean_iou, "found_agreement": self.min_found_agreement},
        )


TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {
        "fp32": Tolerance(min_agreement=1.0, max_accuracy_loss=0.0, max_mean_kl=1e-6),
        "fp16": Tolerance(min_agreement=0.99, max_accuracy_loss=0.005, max_mean_kl=1e-3),
        "bf16": Tolerance(min_agreement=0.98, max_accuracy_loss=0.005, max_mean_kl=5e-3),
        "int8": Tolerance(min_agreement=0.96, max_accuracy_loss=0.005, max_mean_kl=0.005),
    }
)
"""Half a point of accuracy for every lower precision, the project's own limit. A step of FP16 is 2⁻¹¹ of a value, of
BF16 2⁻⁸, of INT8 2⁻⁸ of a range: their KL grows with the square. KL 0.005 is 5 points of probability at most, on
average. Agreement is the loosest, since where FP32's first two classes are nearly tied any rounding may exchange them;
the accuracy says which way, and the cascade has a gate of its own."""

REGION_TOLERANCES: Mapping[Precision, RegionTolerance] = MappingProxyType(
    {
        "fp32": RegionTolerance(min_mean_iou=0.999, min_found_agreement=1.0),
        "fp16": RegionTolerance(min_mean_iou=0.99, min_found_agreement=1.0),
        "bf16": RegionTolerance(min_mean_iou=0.97, min_found_agreement=0.97),
        "int8": RegionTolerance(min_mean_iou=0.95, min_found_agreement=0.95),
    }
)
"""0.95 is what the same network gives at 256 instead of 320 pixels; FG's crop has a margin of 5 % around the box."""


def compare_precision(
    reference: Logits, other: Logits, labels: Labels, groups: np.ndarray, what: str = "classifier"
) -> Figures:
    """The fields of `LogitParity`.

    Args:
        reference, other: Rows of the same n ≥ 1 photographs.
        groups: One a photograph; photographs of one group are not independent.
        what: Names the model and its precision in messages.
    Raises:
        InputError: no photographs, or another number of rows.
        ParityError: logits that are not finite, or another number of classes.
    """
    n = len(reference)
    if n == 0 or not n == len(other) == len(labels) == len(groups):
        raise InputError(
            f"{what}: {n} rows to compare with {len(other)}, {len(labels)} labels and {len(groups)} groups; "
            "expected as many of each, at least one"
        )
    if other.shape != reference.shape:
        raise ParityError(f"{what}: logits {other.shape}; expected {reference.shape}, export it again")
    bad = np.flatnonzero(~np.isfinite(other).all(axis=1))
    if len(bad):
        raise ParityError(
            f"{what}: logits of {len(bad)} of {n} photographs are not finite (the first is number {bad[0]}); "
            "keep more layers in FP32"
        )
    difference = np.abs(other.astype(np.float64) - reference)
    p, q = (log_normalize(each.astype(np.float64)) for each in (reference, other))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    before, after = (each.argmax(axis=1) for each in (reference, other))
    change = bootstrap((after == labels).astype(np.float64) - (before == labels), groups)
    return asdict(
        LogitParity(
            max_abs=float(difference.max()),
            mean_abs=float(difference.mean()),
            q99_abs=float(np.quantile(difference, 0.99)),
            kl=float(kl.max()),
            mean_kl=float(kl.mean()),
            top1_agreement=float((before == after).mean()),
            accuracy=float((after == labels).mean()),
            accuracy_change=change.value,
            accuracy_change_low=change.low,
            accuracy_change_high=change.high,
            n=float(n),
            groups=float(change.groups),
        )
    )


def compare_regions(
    reference: Sequence[Region | None], other: Sequence[Region | None], what: str = "localizer"
) -> Figures:
    """The fields of `RegionParity`.

    Raises:
        InputError: no photographs, or another number of them.
    """
    if not reference or len(reference) != len(other):
        raise InputError(
            f"{what}: {len(reference)} regions to compare with {len(other)}; expected as many, at least one"
        )
    both = [(a, b) for a, b in zip(reference, other, strict=True) if a is not None and b is not None]
    found = [(a is None) == (b is None) for a, b in zip(reference, other, strict=True)]
    ious = np.array([box_iou(a, b) for a, b in both] or [1.0])
    scores = np.array([abs(a.score - b.score) for a, b in both] or [0.0])
    return asdict(
        RegionParity(
            mean_iou=float(ious.mean()),
            q05_iou=float(np.quantile(ious, 0.05)),
            min_iou=float(ious.min()),
            found_agreement=float(np.mean(found)),
            mean_score_change=float(scores.mean()),
            n=float(len(reference)),
        )
    )


def gate(what: str, figures: Mapping[str, float], limits: Limits) -> None:
    """Refuse what is outside its tolerance.

    Raises:
        ParityError: with all figures.
    """
    if broken := limits.broken(figures):
        seen = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        raise ParityError(
            f"{what} answers differently from FP32; expected {'; '.join(broken)} (all figures: {seen}). "
            "Nothing was written; keep more layers in FP32 or another precision"
        )


def outside(figures: Mapping[str, float], *, at_most: Mapping[str, float], at_least: Mapping[str, float]) -> list[str]:
    """What is outside, in words. A figure that is not a number, or is missing, is outside."""
    nan = float("nan")
    wrong = [
        f"{name} {figures.get(name, nan):.3g}, at most {limit:g}"
        for name, limit in at_most.items()
        if not figures.get(name, nan) <= limit
    ]
    return wrong + [
        f"{name} {figures.get(name, nan):.3g}, at least {limit:g}"
        for name, limit in at_least.items()
        if not figures.get(name, nan) >= limit
    ]
