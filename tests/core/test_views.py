import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from l2r2.config import ViewSettings
from l2r2.errors import InputError
from l2r2.types import Region, View
from l2r2.views import box_mask, crop_box, fill_foreground, keep_foreground, normalize, render, wanted_scale

FILL = (1, 2, 3)
RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def settings(**changes: object) -> ViewSettings:
    return ViewSettings(**{"size_px": 32, "margin": 0.0, "fill_rgb": FILL, **changes})


def thirds() -> np.ndarray:
    """Red, green and blue side by side, 32 × 96."""
    return np.repeat(np.array([[RED, GREEN, BLUE]], np.uint8), 32, axis=1).repeat(32, axis=0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(100, 256, (height, width, 3), dtype=np.uint8)


def test_full_squash_keeps_every_third():
    square = render(thirds(), None, View.FULL, settings())
    assert square.shape == (32, 32, 3)
    assert [tuple(square[16, x]) for x in (2, 16, 29)] == [RED, GREEN, BLUE]


def test_full_center_crop_keeps_the_middle_third():
    square = render(thirds(), None, View.FULL, settings(full_fit="center_crop"))
    assert np.all(square == GREEN)


def test_full_center_crop_of_an_upright_photograph():
    square = render(thirds().transpose(1, 0, 2), None, View.FULL, settings(full_fit="center_crop"))
    assert np.all(square == GREEN)


def test_full_pad_keeps_the_aspect_ratio():
    square = render(thirds(), None, View.FULL, settings(full_fit="pad"))
    # 32 × 32 / 96 = 10.67 → 11 rows of picture, from row (32 - 11) // 2 = 10.
    assert np.all(square[:10] == FILL)
    assert np.all(square[21:] == FILL)
    assert [tuple(square[15, x]) for x in (2, 16, 29)] == [RED, GREEN, BLUE]


def test_centercrop_is_the_middle_whatever_was_found():
    photo = noise(90, 160)
    region = Region((0, 0, 20, 20), 1.0)
    half = settings(center_share=0.5)
    expected = np.asarray(Image.fromarray(photo[22:67, 57:102]).resize((half.size_px,) * 2, Image.Resampling.BICUBIC))
    for found in (region, None):
        np.testing.assert_array_equal(render(photo, found, View.CENTERCROP, half), expected)


def test_a_squashed_foreground_fills_the_square():
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[40:60, 20:120] = 200
    region = Region((20, 40, 120, 60), 1.0)
    squashed = render(photo, region, View.FG_C, settings(margin=0.0, fg_fit="squash"))
    padded = render(photo, region, View.FG_C, settings(margin=0.0))
    assert (squashed == 200).all()
    assert (padded == settings().fill_rgb).all(axis=-1).mean() == pytest.approx(0.8, abs=0.02)
    whole = render(photo, None, View.FG_M, settings(fg_fit="squash"))
    np.testing.assert_array_equal(whole, render(photo, None, View.FULL, settings()))


def test_full_ignores_the_region():
    photo, region = noise(40, 60), Region((5.0, 5.0, 20.0, 20.0), 1.0)
    np.testing.assert_array_equal(
        render(photo, region, View.FULL, settings()), render(photo, None, View.FULL, settings())
    )


def test_fg_c_keeps_the_aspect_ratio_of_a_wide_box():
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[30:50, 60:100] = GREEN
    square = render(photo, Region((60.0, 30.0, 100.0, 50.0), 1.0), View.FG_C, settings())
    # 40 × 20 at 32 / 40 is 32 × 16, in the middle: rows 8 to 24.
    assert np.all(square[8:24] == GREEN)
    assert np.all(square[:8] == FILL)
    assert np.all(square[24:] == FILL)


def test_fg_c_keeps_the_aspect_ratio_of_a_tall_box():
    photo = np.zeros((200, 100, 3), np.uint8)
    photo[60:100, 30:50] = GREEN
    square = render(photo, Region((30.0, 60.0, 50.0, 100.0), 1.0), View.FG_C, settings())
    assert np.all(square[:, 8:24] == GREEN)
    assert np.all(square[:, :8] == FILL)
    assert np.all(square[:, 24:] == FILL)


def test_a_box_one_pixel_thin_still_shows():
    photo = np.full((40, 600, 3), GREEN, np.uint8)
    square = render(photo, Region((0.0, 10.0, 600.0, 11.0), 1.0), View.FG_C, settings())
    assert (square == GREEN).all(axis=2).any(axis=1).sum() == 1


def test_fg_m_fills_the_background_and_crops():
    photo, mask = noise(40, 60), np.zeros((40, 60), bool)
    mask[10:30, 20:52] = True
    mask[10:20, 20:30] = False
    region = Region((20.0, 4.0, 52.0, 36.0), 1.0, mask)
    square = render(photo, region, View.FG_M, settings())
    expected = np.where(mask[..., None], photo, np.array(FILL, np.uint8))[4:36, 20:52]
    np.testing.assert_array_equal(square, expected)


def test_bg_s_fills_the_shape_and_shows_the_whole_photograph():
    photo, mask = noise(32, 32), np.zeros((32, 32), bool)
    mask[10:20, 5:25] = True
    square = render(photo, Region((5.0, 10.0, 25.0, 20.0), 1.0, mask), View.BG_S, settings())
    assert np.all(square[mask] == FILL)
    np.testing.assert_array_equal(square[~mask], photo[~mask])


def test_bg_b_fills_the_box_without_margin():
    photo = noise(32, 32)
    square = render(photo, Region((5.0, 10.0, 25.0, 20.0), 1.0), View.BG_B, settings(margin=0.5))
    inside = np.zeros((32, 32), bool)
    inside[10:20, 5:25] = True
    assert np.all(square[inside] == FILL)
    np.testing.assert_array_equal(square[~inside], photo[~inside])


@given(data=st.data())
def test_fg_m_and_bg_s_cover_every_pixel_exactly_once(data):
    mask = data.draw(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
    photo = noise(*mask.shape)  # no pixel has the fill's colour
    kept = np.any(keep_foreground(photo, mask, FILL) != FILL, axis=2)
    left = np.any(fill_foreground(photo, mask, FILL) != FILL, axis=2)
    assert np.all(kept ^ left)


@given(data=st.data())
def test_fg_m_and_bg_s_together_are_the_photograph(data):
    mask = data.draw(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
    photo = noise(*mask.shape)
    sums = keep_foreground(photo, mask, (0, 0, 0)) + fill_foreground(photo, mask, (0, 0, 0))
    np.testing.assert_array_equal(sums, photo)


@pytest.mark.parametrize("view", [View.BG_S, View.BG_B])
def test_without_a_region_a_background_view_is_full(view):
    np.testing.assert_array_equal(
        render(noise(40, 60), None, view, settings()), render(noise(40, 60), None, View.FULL, settings())
    )


@pytest.mark.parametrize("view", [View.FG_C, View.FG_M])
def test_without_a_region_a_foreground_view_is_full_padded(view):
    np.testing.assert_array_equal(
        render(noise(40, 60), None, view, settings()),
        render(noise(40, 60), None, View.FULL, settings(full_fit="pad")),
    )


@pytest.mark.parametrize("view", [View.FG_M, View.BG_S])
def test_a_view_that_needs_a_mask_says_so(view):
    region = Region((5.0, 5.0, 20.0, 20.0), 1.0)
    with pytest.raises(InputError, match=rf"^{view} needs the region's mask and it has none; locate with masks"):
        render(noise(40, 60), region, view, settings())


def test_a_mask_of_another_size_is_refused():
    region = Region((5.0, 5.0, 20.0, 20.0), 1.0, np.ones((60, 40), bool))
    with pytest.raises(InputError, match=r"^the region's mask is \(60, 40\), the photograph \(40, 60\)"):
        render(noise(40, 60), region, View.FG_M, settings())


def test_crop_box_adds_a_share_of_the_longer_side():
    # The longer side is 40, a tenth of it 4.
    assert crop_box(Region((10.0, 20.0, 30.0, 60.0), 1.0), 100, 100, 0.1) == (6, 16, 34, 64)


def test_crop_box_takes_in_every_pixel_that_the_box_touches():
    assert crop_box(Region((1.8, 2.9, 5.1, 6.0), 1.0), 100, 100, 0.0) == (1, 2, 6, 6)


def test_crop_box_stays_inside():
    assert crop_box(Region((-5.0, -5.0, 500.0, 20.0), 1.0), 100, 50, 0.0) == (0, 0, 100, 20)


@pytest.mark.parametrize("box", [(100.0, 0.0, 120.0, 10.0), (0.0, 50.0, 10.0, 70.0), (-30.0, 0.0, -10.0, 10.0)])
def test_a_box_outside_is_refused(box):
    with pytest.raises(InputError, match=r"lies outside the photograph of 100×50 pixels$"):
        crop_box(Region(box, 1.0), 100, 50, 0.0)


@given(x=st.floats(-50, 149), y=st.floats(-50, 99), w=st.floats(51, 200), h=st.floats(51, 200), margin=st.floats(0, 1))
def test_crop_box_is_never_empty_nor_outside(x, y, w, h, margin):
    x0, y0, x1, y1 = crop_box(Region((x, y, x + w, y + h), 1.0), 150, 100, margin)
    assert 0 <= x0 < x1 <= 150
    assert 0 <= y0 < y1 <= 100


def test_box_mask_is_true_inside():
    mask = box_mask(Region((1.0, 2.0, 4.0, 3.0), 1.0), 6, 5)
    assert mask.shape == (5, 6)
    assert np.argwhere(mask).tolist() == [[2, 1], [2, 2], [2, 3]]


def test_normalize_golden_of_efficientnet_lite():
    square = np.zeros((32, 32, 3), np.uint8)
    square[0, 0], square[0, 1] = 255, 127
    batch = normalize([square], settings())
    # (255 - 127) / 128 = 1, (127 - 127) / 128 = 0, (0 - 127) / 128 = -0.9921875
    np.testing.assert_allclose(batch[0, :, 0, :3], [[1.0, 0.0, -0.9921875]] * 3, atol=1e-6)


def test_normalize_golden_of_imagenet():
    square = np.full((32, 32, 3), 255, np.uint8)
    batch = normalize([square], settings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    # (1 - mean) / std: the familiar maxima of an ImageNet input
    np.testing.assert_allclose(batch[0, :, 0, 0], [2.2489083, 2.4285714, 2.64], rtol=1e-6)


def test_normalize_puts_channels_first():
    square = np.zeros((32, 32, 3), np.uint8)
    square[3, 7, 1] = 255
    batch = normalize([square], settings(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert np.argwhere(batch).tolist() == [[0, 1, 3, 7]]
    assert batch.dtype == np.float32


def test_normalize_of_a_batch_equals_one_by_one():
    squares = [noise(32, 32, seed) for seed in range(5)]
    one_by_one = np.concatenate([normalize([square], settings()) for square in squares])
    np.testing.assert_array_equal(normalize(squares, settings()), one_by_one)


def test_normalize_of_nothing():
    assert normalize([], settings()).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("shape", [(33, 97), (97, 33), (640, 32), (32, 32)])
def test_every_view_of_every_shape_is_the_asked_square(view, shape):
    height, width = shape
    region = Region((3.3, 4.4, width / 2, height / 2), 1.0, np.ones(shape, bool))
    assert render(noise(height, width), region, view, settings(margin=0.05)).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("view", "region", "expected"),
    [
        (View.FULL, None, 2 * 100 / 1500),  # squash: the shorter side
        (View.CENTERCROP, None, 2 * 100 / (0.875 * 1500)),
        (View.FG_C, Region((0, 0, 400, 200), 1.0), 100 / 400),  # pad: the longer side of the crop, its own pixels
        (View.FG_C, Region((0, 0, 90, 80), 1.0), 1.0),  # too small to be shrunk
        (View.FG_M, None, 2 * 100 / 2000),  # nothing found: the whole photograph, padded
        (View.BG_S, Region((0, 0, 40, 20), 1.0), 2 * 100 / 1500),
    ],
)
def test_a_view_of_the_whole_wants_twice_its_own_pixels_and_a_crop_its_own(view, region, expected):
    scale = wanted_scale((2000, 1500), region, view, settings(size_px=100, margin=0.0))
    assert scale == pytest.approx(expected, rel=1e-3)
