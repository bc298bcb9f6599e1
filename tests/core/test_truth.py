"""Ground truth as a localizer."""

import numpy as np
import pytest
from PIL import Image

from l2r2.config import TruthSettings
from l2r2.errors import DatasetError
from l2r2.localization.truth import TruthLocalizer
from l2r2.types import InformedLocalizer

PHOTO = np.zeros((40, 60, 3), np.uint8)
MASKS, BOXES = TruthLocalizer(TruthSettings()), TruthLocalizer(TruthSettings(what="box"))


def row(x0: object = 5, y0: object = 6, x1: object = 25, y1: object = 16) -> dict[str, object]:
    return {"path": "p.jpg", "box_x0": x0, "box_y0": y0, "box_x1": x1, "box_y1": y1}


def saved(path, mask: np.ndarray) -> dict[str, object]:
    Image.fromarray(mask).save(path)
    return {"path": "p.jpg", "mask": str(path)}


def test_it_is_told_more_than_pixels():
    assert isinstance(MASKS, InformedLocalizer)
    assert MASKS.key != BOXES.key


def test_a_mask_is_what_is_not_black_and_gives_the_box(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:45] = 1
    mask[12, 50] = 255
    region = MASKS.locate_known(PHOTO, saved(tmp_path / "m.png", mask))
    assert region.box_xyxy_px == (30, 10, 51, 20)
    np.testing.assert_array_equal(region.mask, mask > 0)


def test_an_empty_or_absent_mask_is_nothing(tmp_path):
    assert MASKS.locate_known(PHOTO, saved(tmp_path / "m.png", np.zeros((40, 60), np.uint8))) is None
    assert MASKS.locate_known(PHOTO, {"mask": None}) is None


def test_a_box_is_clipped_to_the_photograph():
    assert BOXES.locate_known(PHOTO, row()).box_xyxy_px == (5, 6, 25, 16)
    assert BOXES.locate_known(PHOTO, row(-3, 0, 70, 40)).box_xyxy_px == (0, 0, 60, 40)
    assert BOXES.locate_known(PHOTO, row(None, None, None, None)) is None


def test_a_mask_of_another_scale_is_scaled_by_the_nearest_pixel(tmp_path):
    half = np.zeros((20, 30), np.uint8)
    half[5:10, 15:20] = 255
    region = MASKS.locate_known(PHOTO, saved(tmp_path / "m.png", half))
    np.testing.assert_array_equal(region.mask, half.repeat(2, axis=0).repeat(2, axis=1) > 0)
    assert region.box_xyxy_px == (30, 10, 40, 20)


def test_a_mask_of_another_shape_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"m\.png is 50×40, its photograph 60×40; expected one shape$"):
        MASKS.locate_known(PHOTO, saved(tmp_path / "m.png", np.zeros((40, 50), np.uint8)))


@pytest.mark.parametrize("dark", [np.uint8([0, 0, 1]), np.uint16(1), np.bool_(True)], ids=["blue", "16 bits", "1 bit"])
def test_the_darkest_pixel_that_is_not_black_is_foreground(tmp_path, dark):
    mask = np.zeros((40, 60, *dark.shape), dark.dtype)
    mask[7:9, 3] = dark
    assert MASKS.locate_known(PHOTO, saved(tmp_path / "m.png", mask)).box_xyxy_px == (3, 7, 4, 9)


def test_a_relative_mask_starts_at_the_folder_and_an_absolute_one_does_not(tmp_path):
    (tmp_path / "val").mkdir()
    absolute = saved(tmp_path / "val" / "m.png", np.ones((40, 60), np.uint8))
    for mask in ("val/m.png", absolute["mask"]):
        assert MASKS.locate_known(PHOTO, {"mask": mask, "folder": tmp_path}).box_xyxy_px == (0, 0, 60, 40)


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"m\.png cannot be read .*; make the data set again"):
        MASKS.locate_known(PHOTO, {"mask": str(tmp_path / "m.png")})


@pytest.mark.parametrize("box", [(61, 0, 70, 10), (20, 0, 20, 10), (float("nan"), 0, 20, 10)])
def test_a_box_outside_or_empty_is_named(box):
    with pytest.raises(DatasetError, match=r"of p\.jpg is empty or outside its 60×40 pixels; expected left < right"):
        BOXES.locate_known(PHOTO, row(*box))


def test_a_data_set_without_truth_is_told_what_to_do():
    with pytest.raises(DatasetError, match=r"no column 'mask'; take localizer\.what = \"box\""):
        MASKS.locate_known(PHOTO, {"path": "p.jpg"})
    with pytest.raises(DatasetError, match=r"no column 'box_x0'; take localizer\.what = \"mask\""):
        BOXES.locate_known(PHOTO, {"path": "p.jpg"})
