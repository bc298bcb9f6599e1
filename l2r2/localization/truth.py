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


class TruthLocalizer:
    """Reads the columns that `l2r2.datasets.dataset` names. Fulfils `InformedLocalizer`."""

    def __init__(self, settings: TruthSettings) -> None:
        self._what = settings.what
        self.key = f"gt-{settings.what}"

    def locate_known(self, photo: Pixels, row: Mapping[str, object]) -> Region | None:
        """The region of one photograph; None where the data set has none for it.

        Args:
            row: "mask" is the path of an image, anything but black in it is foreground; boxes are in pixels.
        Raises:
            DatasetError: the data set has no such columns, or a mask cannot be read or is of another size.
        """
        if self._what == "box":
            return self._box(photo, row)
        if "mask" not in row:
            raise DatasetError("the data set has no column 'mask'; take localizer.what = \"box\" or another localizer")
        if row["mask"] is None:
            return None
        mask = _read(Path(str(row["mask"])), photo)
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
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DatasetError(f"box {(x0, y0, x1, y1)} of {row.get('path')} lies outside its {width}×{height} pixels")
        return Region(box, 1.0)


def _read(path: Path, photo: Pixels) -> Mask:
    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 0
    except (OSError, ValueError) as error:
        raise DatasetError(f"mask {path} cannot be read ({error}); make the data set again") from None
    if mask.shape != photo.shape[:2]:
        raise DatasetError(
            f"mask {path} is {mask.shape[1]}×{mask.shape[0]}, its photograph {photo.shape[1]}×{photo.shape[0]}; "
            "expected the same"
        )
    return mask
