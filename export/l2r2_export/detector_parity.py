"""Does an exported detector find what the one it came from finds? Figures first, then a gate, as in `parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from l2r2.errors import BackendError, ParityError
from l2r2.localization.boxes import Masks
from l2r2.types import Photos, Pixels, Region, Session
from l2r2_export.parity import AGREEMENT, MIN_IOU, box_iou, count, gate

OUTPUT_TOLERANCE = 1e-4
"""Largest absolute difference of a raw output: of a score or a share of the photograph, [0, 1]."""

SCORE_TOLERANCE = 1e-3
"""Largest absolute difference of a region's score, [0, 1]. The photograph is scaled anew, to the grey level where the
processor has the same instructions (AVX2); the network makes more of a rounding than a plain comparison of outputs."""

MIN_REGION_IOU = 0.95
"""Of the two regions of a photograph, all instances united. A speck of a mask that one of them lacks moves the box
around all; FG's crop has a margin of 5 % around it."""

MIN_MASK_IOU = 0.98
"""Of two masks of one box: a pixel more or less along the border of a thin one."""


class Finds(Protocol):
    """A localizer that tells all it found: `DetectingLocalizer` in torch, `FrozenDetectorLocalizer` on a runtime."""

    def instances(self, photos: Photos) -> list[list[Region]]:
        """Regions of each photograph, surest first, without masks."""
        ...

    def decide(self, photo: Pixels, instances: Sequence[Region]) -> Region | None:
        """The region that a photograph's instances make."""
        ...


@dataclass(frozen=True, slots=True)
class OutputParity:
    """Raw outputs of two sessions.

    Attributes:
        max_abs: Largest absolute difference, row by row.
        max_abs_set: As `max_abs`, rows of a photograph paired as a set: queries may come in another order.
        same_rows: Share of rows that are in the same place within the tolerance, [0, 1].
        batch_max_abs: Largest absolute difference of the exported model between a batch and one by one.
        batch_rows: As `same_rows`, between a batch and one by one.
        n: Photographs.
    """

    max_abs: float
    max_abs_set: float
    same_rows: float
    batch_max_abs: float
    batch_rows: float
    n: float


@dataclass(frozen=True, slots=True)
class DetectorParity:
    """What two detectors find, and the region that each makes of it.

    Attributes:
        min_iou: Of the boxes of paired instances; 1 where there are none.
        max_abs_score: Of paired instances.
        count_agreement: Share of photographs with the same number of instances, [0, 1].
        batch_agreement: Share of photographs whose instances are the same alone as among the others, [0, 1].
        found_agreement: Share of photographs where both or neither decided for a region, [0, 1].
        min_region_iou: Of the two regions' boxes where both did; 1 where there is no such photograph.
        instances: How many of the reference were compared; of none nothing is proved.
        n: Photographs.
    """

    min_iou: float
    max_abs_score: float
    count_agreement: float
    batch_agreement: float
    found_agreement: float
    min_region_iou: float
    instances: float
    n: float


@dataclass(frozen=True, slots=True)
class SegmenterParity:
    """Masks of two segmenters.

    Attributes:
        min_iou: Of the two masks of a box; 1 where both are empty.
        regions: Boxes compared.
        n: Photographs.
    """

    min_iou: float
    regions: float
    n: float


def check_outputs(
    reference: Session,
    exported: Session,
    feeds: Sequence[Mapping[str, np.ndarray]],
    tolerance: float = OUTPUT_TOLERANCE,
    *,
    ordered: bool = True,
    least_rows: float = 1.0,
    what: str = "detector",
) -> dict[str, float]:
    """Compare raw outputs on what the networks are fed; the fields of `OutputParity`.

    Args:
        feeds: At least one, each a batch; those of several photographs are also run one by one.
        tolerance: Largest absolute difference accepted.
        ordered: Whether a photograph's rows must be in the same place, too; else they are compared as a set.
        least_rows: Below 1, that share of rows must agree in place, and nothing is asked of the others: of hundreds of
            queries two may be chosen by nearly equal numbers, and change places where those round otherwise.
        what: Names the model in messages.
    Raises:
        ParityError: outside the tolerance, other outputs, or the exported model failed.
        InputError: no feeds.
    """
    count(len(feeds), what)
    worst, sets, places, batches, batch_places, n = [], [], [], [], [], 0
    for feed in feeds:
        size = len(next(iter(feed.values())))
        try:
            got = exported.infer(feed)
            alone = [exported.infer({name: values[i : i + 1] for name, values in feed.items()}) for i in range(size)]
        except BackendError as error:
            raise ParityError(f"{what}: the exported model failed on {size} photographs: {error}") from error
        wanted = reference.infer(feed)
        shapes = {name: values.shape for name, values in wanted.items()}
        if shapes != {name: values.shape for name, values in got.items()}:
            raise ParityError(f"{what}: the exported model gave {_shapes(got)}; expected {shapes}, export again")
        for i in range(size):
            a, b, single = _rows(wanted, i), _rows(got, i), _rows(alone[i], 0)
            apart, batch_apart = np.abs(a - b).max(axis=1), np.abs(single - b).max(axis=1)
            worst.append(float(apart.max()))
            places.append(float((apart <= tolerance).mean()))
            sets.append(as_set(a, b))
            batches.append(float(batch_apart.max()))
            batch_places.append(float((batch_apart <= tolerance).mean()))
        n += size
    figures = asdict(
        OutputParity(
            max_abs=float(np.max(worst)),
            max_abs_set=float(np.max(sets)),
            same_rows=float(np.mean(places)),
            batch_max_abs=float(np.max(batches)),
            batch_rows=float(np.mean(batch_places)),
            n=float(n),
        )
    )
    if least_rows < 1:
        gate(what, figures, {}, {"same_rows": least_rows, "batch_rows": least_rows})
    else:
        gate(what, figures, {"max_abs" if ordered else "max_abs_set": tolerance, "batch_max_abs": tolerance}, {})
    return figures


def check_detector(reference: Finds, exported: Finds, photos: Photos, what: str = "detector") -> dict[str, float]:
    """Compare what is found and decided; the fields of `DetectorParity`.

    Args:
        photos: n ≥ 1, read in order, more than once.
        what: Names the model in messages.
    Raises:
        ParityError: other instances (their number, an IoU, a score), others in a batch, another decision, or the
            exported model failed.
        InputError: no photographs.
    """
    n = count(len(photos), what)
    counts, batches, found, ious, scores, region_ious, instances = [], [], [], [1.0], [0.0], [1.0], 0
    try:
        together = exported.instances(photos)
        for photo, among in zip(photos, together, strict=True):
            wanted, got = reference.instances([photo])[0], exported.instances([photo])[0]
            counts.append(len(wanted) == len(got))
            batches.append(len(among) == len(got) and _close(paired(got, among)))
            instances += len(wanted)
            for first, second in paired(wanted, got):
                ious.append(box_iou(first, second))
                scores.append(abs(first.score - second.score))
            before, after = reference.decide(photo, wanted), exported.decide(photo, got)
            found.append((before is None) == (after is None))
            if before is not None and after is not None:
                region_ious.append(box_iou(before, after))
    except BackendError as error:
        raise ParityError(f"{what}: the exported model failed: {error}; export it again") from error
    figures = asdict(
        DetectorParity(
            min_iou=min(ious),
            max_abs_score=max(scores),
            count_agreement=float(np.mean(counts)),
            batch_agreement=float(np.mean(batches)),
            found_agreement=float(np.mean(found)),
            min_region_iou=min(region_ious),
            instances=float(instances),
            n=float(n),
        )
    )
    agreements = dict.fromkeys(("count_agreement", "batch_agreement", "found_agreement"), AGREEMENT)
    at_least = {"min_iou": MIN_IOU, **agreements, "min_region_iou": MIN_REGION_IOU}
    gate(what, figures, {"max_abs_score": SCORE_TOLERANCE}, at_least)
    return figures


def check_segmenter(
    reference: Masks, exported: Masks, photos: Sequence[Pixels], regions: Sequence[Sequence[Region]]
) -> dict[str, float]:
    """Compare masks; the fields of `SegmenterParity`.

    Args:
        photos: n ≥ 1.
        regions: Of each photograph.
    Raises:
        ParityError: an IoU below `MIN_MASK_IOU`, or the exported model failed.
        InputError: no photographs.
    """
    n = count(len(photos), "segmenter")
    ious = [1.0]
    try:
        for photo, boxes in zip(photos, regions, strict=True):
            for wanted, got in zip(reference.masks(photo, boxes), exported.masks(photo, boxes), strict=True):
                union = int((wanted | got).sum())
                ious.append(int((wanted & got).sum()) / union if union else 1.0)
    except BackendError as error:
        raise ParityError(f"segmenter: the exported model failed: {error}; export it again") from error
    figures = asdict(SegmenterParity(min_iou=min(ious), regions=float(sum(map(len, regions))), n=float(n)))
    gate("segmenter", figures, {}, {"min_iou": MIN_MASK_IOU})
    return figures


def as_set(first: Float[np.ndarray, "rows d"], second: Float[np.ndarray, "rows d"]) -> float:
    """Largest absolute difference of rows paired one to one so that it is small; not finite in, NaN out."""
    from scipy.optimize import linear_sum_assignment

    apart = np.abs(first[:, None] - second[None]).max(axis=2)
    if not np.isfinite(apart).all():
        return float("nan")
    return float(apart[linear_sum_assignment(apart)].max())


def paired(first: Sequence[Region], second: Sequence[Region]) -> list[tuple[Region, Region]]:
    """Regions paired one to one by their boxes: of near equal scores either may come first."""
    from scipy.optimize import linear_sum_assignment

    if not first or not second:
        return []
    apart = np.array([[1 - box_iou(a, b) + abs(a.score - b.score) for b in second] for a in first])
    return [(first[i], second[j]) for i, j in zip(*linear_sum_assignment(apart), strict=True)]


def _close(pairs: Sequence[tuple[Region, Region]]) -> bool:
    return all(box_iou(a, b) >= MIN_IOU and abs(a.score - b.score) <= SCORE_TOLERANCE for a, b in pairs)


def _rows(outputs: Mapping[str, np.ndarray], i: int) -> Float[np.ndarray, "rows d"]:
    """Outputs of one photograph side by side: one row a query, or one for all where there are no queries."""
    parts = [outputs[name][i].astype(np.float64) for name in sorted(outputs)]
    if len(parts) == 1:
        return parts[0].reshape(1, -1)
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _shapes(outputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in outputs.items()}
