"""From a detector's boxes to one region: conventions (as the published processors have them), choice, masks, union."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from l2r2.config import DetectorSettings
from l2r2.types import Mask, Pixels, Region

Boxes = Float[np.ndarray, "n 4"]


@runtime_checkable
class Masks(Protocol):
    """Cuts out what boxes hold: `Segmenter` in torch, `SessionSegmenter` on a runtime."""

    @property
    def key(self) -> str:
        """Changes with the weights."""
        ...

    def masks(self, photo: Pixels, regions: Sequence[Region]) -> list[Mask]:
        """One of the photograph's size a region, in order."""
        ...


def corners(boxes_cxcywh: Boxes) -> Boxes:
    """Centre and size → left, top, right, bottom, in the same unit."""
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def from_image(boxes_cxcywh: Boxes, width: int, height: int) -> Boxes:
    """Shares of the photograph (Grounding DINO, OWL-ViT: stretched or unpadded) → xyxy in its pixels."""
    return corners(boxes_cxcywh) * np.array([width, height, width, height])


def from_padded_square(boxes_cxcywh: Boxes, width: int, height: int) -> Boxes:
    """Shares of the square that the photograph is the upper left part of (OWLv2) → xyxy in its pixels."""
    return corners(boxes_cxcywh) * max(width, height)


def select(
    boxes_xyxy_px: Boxes, scores: Float[np.ndarray, " n"], width: int, height: int, settings: DetectorSettings
) -> list[Region]:
    """The boxes that count, whatever their class: clipped to the photograph, sure, large and different enough.

    Returns:
        At most `settings.max_detections`, surest first, of equals in the given order.
    """
    clipped = np.clip(boxes_xyxy_px, 0, np.array([width, height, width, height], dtype=boxes_xyxy_px.dtype))
    sides = (clipped[:, 2:] - clipped[:, :2]) / np.array([width, height])
    good = np.isfinite(boxes_xyxy_px).all(axis=1) & (scores >= settings.box_threshold)  # not a number is not sure
    good &= (sides > 0).all(axis=1) & (sides >= settings.min_side).all(axis=1)
    order = np.flatnonzero(good)[np.argsort(-scores[good], kind="stable")]
    chosen: list[Region] = []
    while len(order) and len(chosen) < settings.max_detections:
        best, rest = order[0], order[1:]
        x0, y0, x1, y1 = clipped[best].tolist()
        chosen.append(Region((x0, y0, x1, y1), float(min(max(scores[best], 0.0), 1.0))))
        order = rest[overlap(clipped[best], clipped[rest]) <= settings.nms_iou]
    return chosen


def overlap(box: Float[np.ndarray, " 4"], others: Boxes) -> Float[np.ndarray, " n"]:
    """Intersection over union of one box with each of the others, [0, 1]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def decide(
    photo: Pixels, found: Sequence[Sequence[Region]], combine: Literal["best", "union"], segmenter: Masks | None
) -> list[Region | None]:
    """One region a prompt from its instances, surest first: the first or all of them, cut out where there is SAM.

    A box becomes that of its mask; an empty mask is nothing, and so is a prompt of which nothing is left.
    """
    if combine == "best":
        found = [instances[:1] for instances in found]
    if segmenter is not None:
        masks = iter(segmenter.masks(photo, [region for instances in found for region in instances]))
        found = [_cut(instances, [next(masks) for _ in instances]) for instances in found]
    return [unite(instances) if instances else None for instances in found]


def _cut(instances: Sequence[Region], masks: Sequence[Mask]) -> list[Region]:
    boxes = [mask_box(mask) for mask in masks]
    cut = zip(instances, boxes, masks, strict=True)
    return [replace(region, box_xyxy_px=box, mask=mask) for region, box, mask in cut if box is not None]


def unite(regions: Sequence[Region]) -> Region:
    """All instances as one: the box around all, the masks joined where each has one, the highest score.

    Args:
        regions: At least one.
    """
    boxes = np.array([region.box_xyxy_px for region in regions])
    x0, y0 = boxes[:, :2].min(axis=0).tolist()
    x1, y1 = boxes[:, 2:].max(axis=0).tolist()
    masks = [region.mask for region in regions if region.mask is not None]
    mask = np.logical_or.reduce(masks) if len(masks) == len(regions) else None
    return Region((x0, y0, x1, y1), max(region.score for region in regions), mask)


def mask_box(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float, float] | None:
    """The smallest box around a mask, right and bottom exclusive; None for an empty mask."""
    rows: Int[np.ndarray, " r"] = np.flatnonzero(mask.any(axis=1))
    columns: Int[np.ndarray, " c"] = np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
