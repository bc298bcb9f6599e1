"""Small pictures that go with an answer: a region's thumbnail, its mask; and the way back."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from l2r2.images import Photograph
from l2r2.types import Mask, Region

MASK_PX = 512
"""Longest side of a mask that is sent."""

JPEG_QUALITY = 85


def thumbnail_jpeg(photo: Photograph, region: Region, longest_px: int) -> bytes:
    """The region as a JPEG, its longest side `longest_px` or what the photograph has.

    Raises:
        ImageError: the photograph is damaged.
    """
    x0, y0, x1, y1 = region.box_xyxy_px
    pixels = photo.at(min(1.0, longest_px / max(x1 - x0, y1 - y0)))
    across, down = pixels.shape[1] / photo.size_px[0], pixels.shape[0] / photo.size_px[1]
    left, top = int(x0 * across), int(y0 * down)
    right, bottom = max(math.ceil(x1 * across), left + 1), max(math.ceil(y1 * down), top + 1)
    picture = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def mask_png(mask: Mask) -> bytes:
    """A mask as a PNG of one channel, 255 where it is true, at most `MASK_PX` on a side."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.thumbnail((MASK_PX, MASK_PX), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def read_mask(png: bytes) -> Mask:
    """The way back from `mask_png`."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return np.asarray(picture.convert("L")) >= 128
