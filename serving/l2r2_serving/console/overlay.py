"""The photograph with what was found drawn into it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from l2r2.config import ImageSettings
from l2r2.images import Photograph
from l2r2.types import Mask, Region

LONGEST_PX = 1024
"""Of the drawn photograph: sharp on a screen, about a hundred kilobytes."""

JPEG_QUALITY = 85

DIM = 0.35
"""Brightness that is left outside a mask. Dark and light, unlike two colours, everybody tells apart."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)

Box = tuple[float, float, float, float]


def draw(data: bytes, regions: Sequence[Region], settings: ImageSettings = ImageSettings()) -> bytes:
    """The upright photograph with its regions, as a JPEG that carries none of the photograph's metadata.

    What is outside the regions' masks is darkened. The first frame is thick, the others thin; where there are
    several each has its number. Frames are white within black, so that they are seen on every ground.

    Args:
        regions: In pixels of the upright photograph; masks of any size, in its proportions.
    Raises:
        ImageError: the photograph is damaged.
    """
    photograph = Photograph(data, settings)
    width, height = photograph.size_px
    scale = min(1.0, LONGEST_PX / max(width, height))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = Image.fromarray(np.ascontiguousarray(photograph.at(scale)))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    masks = [region.mask for region in regions if region.mask is not None]
    if masks:
        picture = _darkened(picture, masks)
    pen = ImageDraw.Draw(picture)
    thick = max(2, max(size) // 250)
    boxes = [_scaled(region, size[0] / width, size[1] / height) for region in regions]
    for number, box in reversed(list(enumerate(boxes, 1))):
        _frame(pen, box, thick if number == 1 else max(1, thick // 2))
    if len(boxes) > 1:
        for number, box in reversed(list(enumerate(boxes, 1))):
            _number(pen, number, box, max(14, max(size) // 36))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG that a page holds itself, so that nothing is kept for it to fetch."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _darkened(picture: Image.Image, masks: Sequence[Mask]) -> Image.Image:
    inside = Image.new("L", picture.size)
    for mask in masks:
        one = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
        inside = ImageChops.lighter(inside, one)
    return Image.composite(picture, picture.point(lambda value: int(value * DIM)), inside)


def _scaled(region: Region, across: float, down: float) -> Box:
    x0, y0, x1, y1 = region.box_xyxy_px
    return x0 * across, y0 * down, x1 * across, y1 * down


def _frame(pen: ImageDraw.ImageDraw, box: Box, thick: int) -> None:
    """Its inner edge is the box, so that the frame hides nothing of what it frames."""
    for colour, reach, width in ((BLACK, thick + 2, thick + 2), (WHITE, thick + 1, thick)):
        outer = (box[0] - reach, box[1] - reach, box[2] + reach - 1, box[3] + reach - 1)
        pen.rectangle(outer, outline=colour, width=width)


def _number(pen: ImageDraw.ImageDraw, number: int, box: Box, size: int) -> None:
    font = ImageFont.load_default(size)
    x0, y0, x1, y1 = pen.textbbox((0, 0), str(number), font=font)
    pad = size // 4
    left, top = max(box[0], 0), max(box[1], 0)
    pen.rectangle((left, top, left + x1 - x0 + 2 * pad, top + y1 - y0 + 2 * pad), fill=BLACK, outline=WHITE)
    pen.text((left + pad - x0, top + pad - y0), str(number), font=font, fill=WHITE)
