"""The data set's own boxes and masks as a localizer: an upper bound, for experiments only (the paper's table 11)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from l2r2.config import TruthSettings
from l2r2.errors import DatasetError
from l2r2.localization.boxes import mask_box
from l2r2.types import Mask, Pixels, Region

BOX = ("box_x0", "box_y0", "box_x1", "box_y1")

ASPECT_TOLERANCE = 0.02
"""A mask may be of another scale than its photograph, but of the same shape, up to rounding."""


class TruthLocalizer:
    """Reads the columns that `l2r2.datasets.dataset` names. Fulfils `InformedLocalizer`."""

    def __init__(self, settings: TruthSettings) -> None:
        self._what = settings.what
        self.key = f"gt-{settings.what}"

    def locate_known(self, photo: Pixels, row: Mapping[str, object]) -> Region | None:
        """The region of one photograph; None where the data set has none for it.

        Args:
            row: "mask" is the path of an image, absolute or from "folder"; anything but black in it is foreground. It
                is scaled to the photograph (nearest pixel). Boxes are in pixels of the upright photograph.
        Raises:
            DatasetError: the data set has no such columns, a mask cannot be read or is of another shape, a box is
                empty or outside.
        """
        if self._what == "box":
            return self._box(photo, row)
        if "mask" not in row:
            raise DatasetError("the data set has no column 'mask'; take localizer.what = \"box\" or another localizer")
        if row["mask"] is None:
            return None
        mask = _read(Path(str(row.get("folder") or "")) / str(row["mask"]), photo)
        box = mask_box(mask)
        return None if box is None else Region(box, 1.0, mask)

    def _box(self, photo: Pixels, row: Mapping[str, object]) -> Region | None:
        absent = [name for name in BOX if name not in row]
        if absent:
            raise DatasetError(f'the data set has no column {absent[0]!r}; take localizer.what = "mask"')
        values = [row[name] for name in BOX]
        if None in values:
            return None
        x0, y0, x1, y1 = (float(str(value)) for value in values)
        height, width = photo.shape[:2]
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if not (box[0] < box[2] and box[1] < box[3]):  # also where one is not a number
            raise DatasetError(
                f"box {(x0, y0, x1, y1)} of {row.get('path')} is empty or outside its {width}×{height} pixels; "
                "expected left < right and top < bottom, in pixels; make the data set again"
            )
        return Region(box, 1.0)


def _read(path: Path, photo: Pixels) -> Mask:
    height, width = photo.shape[:2]
    try:
        with Image.open(path) as image:
            drawn = image.convert("L" if image.mode.startswith("I") else "RGB")  # "L" alone turns dark colours black
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"mask {path} cannot be read ({error}); make the data set again") from None
    if abs(drawn.width * height / (drawn.height * width) - 1) > ASPECT_TOLERANCE:
        raise DatasetError(
            f"mask {path} is {drawn.width}×{drawn.height}, its photograph {width}×{height}; expected one shape"
        )
    return np.atleast_3d(np.asarray(drawn.resize((width, height), Image.Resampling.NEAREST))).max(axis=2) > 0
