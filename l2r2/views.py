"""Photograph + Region → what a classifier sees. The only resize and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from l2r2.config import ViewSettings
from l2r2.errors import InputError
from l2r2.types import Mask, Pixels, Region, View

OVERSAMPLE = 2.0
"""Pixels of the whole photograph, along its side, for each pixel of a view of it; the resize then averages."""

Square = UInt8[np.ndarray, "size size 3"]


def render(photo: Pixels, region: Region | None, view: View, settings: ViewSettings) -> Square:
    """Make one view of a photograph, in whole colours.

    Without a region every view but CENTERCROP is FULL, laid out as that view would be: the paper's fallback (appendix
    C.1, footnote 4).

    Returns:
        `settings.size_px` square, RGB, [0, 255]; bicubic with antialiasing.
    Raises:
        InputError: FG_M or BG_S is asked of a region without a mask, or the region lies outside the photograph.
    """
    if view is View.CENTERCROP:
        return _fit(photo, _middle(photo, settings.center_share), "squash", settings)
    if view is View.FULL or region is None:
        whole = (0, 0, photo.shape[1], photo.shape[0])
        return _fit(photo, whole, settings.fg_fit if view in {View.FG_C, View.FG_M} else settings.full_fit, settings)
    if view in {View.FG_C, View.FG_M}:
        if view is View.FG_M:
            photo = keep_foreground(photo, _mask(region, photo, view), settings.fill_rgb)
        return _fit(photo, crop_box(region, photo.shape[1], photo.shape[0], settings.margin), settings.fg_fit, settings)
    if view is View.BG_S:
        photo = fill_foreground(photo, _mask(region, photo, view), settings.fill_rgb)
    else:
        photo = fill_foreground(photo, box_mask(region, photo.shape[1], photo.shape[0]), settings.fill_rgb)
    return _fit(photo, (0, 0, photo.shape[1], photo.shape[0]), settings.full_fit, settings)


def wanted_scale(size_px: tuple[int, int], region: Region | None, view: View, settings: ViewSettings) -> float:
    """The least scale of a photograph, (0, 1], that is fine enough for a view.

    A whole photograph keeps `OVERSAMPLE` pixels for each of the view's, a foreground's crop one: its pixels are means
    of the original's already, and a finer scale for every crop would cost most of what scaling saves.

    Args:
        size_px: Width and height of the original; the region is in its pixels.
    """
    width, height = size_px
    fit, finer = settings.full_fit, OVERSAMPLE
    if view is View.CENTERCROP:
        width = height = max(1, round(settings.center_share * min(size_px)))
        fit = "squash"
    elif view in {View.FG_C, View.FG_M}:
        fit = settings.fg_fit
        if region is not None:
            x0, y0, x1, y1 = crop_box(region, width, height, settings.margin)
            width, height, finer = x1 - x0, y1 - y0, 1.0
    side = max(width, height) if fit == "pad" else min(width, height)
    return min(1.0, finer * settings.size_px / side)


def normalize(squares: Sequence[Square], settings: ViewSettings) -> Float32[np.ndarray, "n 3 size size"]:
    """Stack rendered views into a classifier's input: NCHW, (x / 255 - mean) / std."""
    size = settings.size_px
    if not squares:
        return np.empty((0, 3, size, size), np.float32)
    scale = (1.0 / (255.0 * np.asarray(settings.std))).astype(np.float32)
    shift = (np.asarray(settings.mean) / np.asarray(settings.std)).astype(np.float32)
    batch = np.empty((len(squares), 3, size, size), np.float32)
    for row, square in zip(batch, squares, strict=True):
        np.multiply(square.transpose(2, 0, 1), scale[:, None, None], out=row)
        row -= shift[:, None, None]
    return batch


def keep_foreground(photo: Pixels, mask: Mask, fill_rgb: tuple[int, int, int]) -> Pixels:
    """Fill every pixel that is not foreground. With `fill_foreground` each pixel is kept exactly once."""
    return np.where(mask[..., None], photo, np.asarray(fill_rgb, np.uint8))


def fill_foreground(photo: Pixels, mask: Mask, fill_rgb: tuple[int, int, int]) -> Pixels:
    """Fill every foreground pixel."""
    return np.where(mask[..., None], np.asarray(fill_rgb, np.uint8), photo)


def crop_box(region: Region, width: int, height: int, margin: float) -> tuple[int, int, int, int]:
    """The region's box with its margin, in whole pixels inside the photograph.

    Raises:
        InputError: nothing of the box lies inside.
    """
    x0, y0, x1, y1 = region.box_xyxy_px
    pad = margin * max(x1 - x0, y1 - y0)
    box = (
        max(0, math.floor(x0 - pad)),
        max(0, math.floor(y0 - pad)),
        min(width, math.ceil(x1 + pad)),
        min(height, math.ceil(y1 + pad)),
    )
    if box[2] <= box[0] or box[3] <= box[1]:
        raise InputError(f"box {region.box_xyxy_px} lies outside the photograph of {width}×{height} pixels")
    return box


def box_mask(region: Region, width: int, height: int) -> Mask:
    """True inside the region's box, without margin."""
    x0, y0, x1, y1 = crop_box(region, width, height, 0.0)
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _middle(photo: Pixels, share: float) -> tuple[int, int, int, int]:
    height, width = photo.shape[:2]
    side = max(1, round(share * min(width, height)))
    x0, y0 = (width - side) // 2, (height - side) // 2
    return x0, y0, x0 + side, y0 + side


def _mask(region: Region, photo: Pixels, view: View) -> Mask:
    if region.mask is None:
        raise InputError(f"{view} needs the region's mask and it has none; locate with masks or use FG_C, BG_B")
    if region.mask.shape != photo.shape[:2]:
        raise InputError(f"the region's mask is {region.mask.shape}, the photograph {photo.shape[:2]} (height, width)")
    return region.mask


def _fit(photo: Pixels, box: tuple[int, int, int, int], fit: str, settings: ViewSettings) -> Square:
    size = settings.size_px
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    if fit == "center_crop":
        side = min(width, height)
        x0, y0 = x0 + (width - side) // 2, y0 + (height - side) // 2
        width = height = side
    part = Image.fromarray(photo[y0 : y0 + height, x0 : x0 + width])
    if fit != "pad" or width == height:
        return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))
    scale = size / max(width, height)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (size, size), settings.fill_rgb)
    square.paste(part.resize(shape, Image.Resampling.BICUBIC), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(square)
