"""Ground-truth masks: into the frame of the upright photograph, and onto disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from l2r2.errors import DatasetError
from l2r2.localization.boxes import mask_box
from l2r2.localization.truth import BOX
from l2r2.types import Mask

ASPECT_TOLERANCE = 0.02
"""A mask may be of another scale than its photograph, but of the same shape, up to rounding."""

ORIENTATION = 0x0112
"""EXIF tag: how a photograph's stored pixels are to be turned."""


def keep_sources(target: Path, sources: Iterable[Path]) -> None:
    """Refuse to replace a folder in which something lies that is still to be read.

    Raises:
        DatasetError: a source is in `target`.
    """
    for source in sources:
        if source.resolve().is_relative_to(target.resolve()):
            raise DatasetError(
                f"{source} lies in {target}, which is written anew; choose another folder for the data set"
            )


def fit_mask(mask: Mask, photo: Path) -> Mask:
    """Bring a mask of the stored pixels, at any scale, to the frame of the upright photograph.

    Of the photograph only the header is read.

    Raises:
        DatasetError: the photograph cannot be read, or is of another shape than its mask.
    """
    try:
        with Image.open(photo) as image:
            size, turn = image.size, image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{photo} cannot be read: {error}; get it again") from None
    drawn = Image.fromarray(mask)
    if drawn.size != size:
        if abs(drawn.width * size[1] / (drawn.height * size[0]) - 1) > ASPECT_TOLERANCE:
            raise DatasetError(
                f"the mask of {photo} is {drawn.width}×{drawn.height}, the photograph {size[0]}×{size[1]}; "
                "expected one shape"
            )
        drawn = drawn.resize(size, Image.Resampling.NEAREST)
    drawn.getexif()[ORIENTATION] = turn
    return np.asarray(ImageOps.exif_transpose(drawn))


def save_mask(mask: Mask, path: Path) -> dict[str, float | None]:
    """Write a black and white PNG; gives the columns of its box, null where nothing is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return dict(zip(BOX, mask_box(mask) or (None,) * len(BOX), strict=True))
