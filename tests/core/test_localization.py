import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.config import SaliencySettings
from l2r2.errors import ArtifactError
from l2r2.localization import RegionCache, SaliencyLocalizer
from l2r2.localization.cache import _SHARD
from l2r2.localization.saliency import region_of
from l2r2.types import Region
from tests.fakes import BOX, FunctionSession, TableLocalizer, photo

ROOT = Path(__file__).parents[2]
SETTINGS = SaliencySettings()


def saliency(*parts: tuple[int, int, int, int, float], size: int = 64, ground: float = 0.01) -> np.ndarray:
    """A map with rectangles (left, top, right, bottom, value)."""
    values = np.full((size, size), ground, np.float32)
    for x0, y0, x1, y1, value in parts:
        values[y0:y1, x0:x1] = value
    return values


def test_the_box_is_scaled_to_a_photograph_that_is_not_square():
    region = region_of(saliency((16, 8, 32, 48, 0.9)), 640, 320, SETTINGS)
    # 640 / 64 = 10 across, 320 / 64 = 5 down
    assert region.box_xyxy_px == (160.0, 40.0, 320.0, 240.0)
    assert region.score == pytest.approx(0.9)
    assert region.mask is None


def test_the_largest_component_wins_over_the_brightest():
    region = region_of(saliency((0, 0, 8, 8, 1.0), (30, 30, 50, 50, 0.8)), 64, 64, SETTINGS)
    assert region.box_xyxy_px == (30.0, 30.0, 50.0, 50.0)
    assert region.score == pytest.approx(0.8)


def test_parts_that_touch_only_at_a_corner_are_apart():
    region = region_of(saliency((0, 0, 8, 8, 0.9), (8, 8, 20, 20, 0.9)), 64, 64, SETTINGS)
    assert region.box_xyxy_px == (8.0, 8.0, 20.0, 20.0)


def test_the_threshold_is_of_the_scaled_map():
    # From 0.5 to 0.9: half way is 0.7, so 0.6 is ground and 0.8 is not.
    values = saliency((0, 0, 4, 4, 0.9), (0, 4, 10, 10, 0.6), (4, 0, 10, 4, 0.8), ground=0.5)
    assert region_of(values, 64, 64, SETTINGS).box_xyxy_px == (0.0, 0.0, 10.0, 4.0)


def test_the_score_is_of_the_unscaled_map():
    # Scaled, the rectangle is 1 everywhere; unscaled only 0.3: nothing stands out.
    assert region_of(saliency((10, 10, 40, 40, 0.3)), 64, 64, SETTINGS) is None
    assert region_of(saliency((10, 10, 40, 40, 0.3)), 64, 64, SaliencySettings(min_score=0.2)) is not None


def test_instances_are_the_components_by_size_up_to_one_that_is_nothing():
    values = saliency((0, 0, 8, 8, 0.9), (30, 30, 50, 50, 0.8), (0, 40, 10, 50, 0.6), (60, 0, 61, 1, 0.9))
    localizer = SaliencyLocalizer(session_of(values), SETTINGS, "d", input_name="images")
    (found,) = localizer.instances([photo(1)])
    assert [region.score for region in found] == pytest.approx([0.8, 0.6, 0.9])
    assert localizer.decide(photo(1), found) is found[0]
    assert all(region.mask is None for region in found)
    # The second is below 0.7, so it and what is smaller are nothing; below 0.85 there is no first.
    assert [[round(r.score, 1) for r in localizer.instances([photo(1)], score)[0]] for score in (0.7, 0.85)] == [
        [0.8],
        [],
    ]
    assert localizer.instances([]) == []


def test_instances_carry_a_mask_where_asked():
    localizer = SaliencyLocalizer(session_of(saliency((30, 30, 50, 50, 0.8))), SETTINGS, "d", input_name="images")
    ((region,),) = localizer.instances([photo(1)], masks=True)
    x0, y0, x1, y1 = (round(side) for side in region.box_xyxy_px)
    assert region.mask.shape == photo(1).shape[:2]
    assert region.mask[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()
    assert region.mask.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.1)


def session_of(values: np.ndarray) -> FunctionSession:
    return FunctionSession(lambda images: np.repeat(values[None, None], len(images), axis=0))


def test_a_speck_is_nothing():
    # 2 × 2 of 64 × 64 is 0.00098 of the photograph, 3 × 3 is 0.0022.
    assert region_of(saliency((10, 10, 12, 12, 0.9)), 64, 64, SETTINGS) is None
    assert region_of(saliency((10, 10, 13, 13, 0.9)), 64, 64, SETTINGS) is not None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_is_nothing(value):
    assert region_of(saliency(ground=value), 64, 64, SETTINGS) is None


def test_a_score_just_above_one_is_one():
    assert region_of(saliency((10, 10, 40, 40, 1.0001)), 64, 64, SETTINGS).score == 1.0


@given(
    x=st.integers(0, 40),
    y=st.integers(0, 40),
    w=st.integers(8, 20),
    h=st.integers(8, 20),
    shape=st.sampled_from([(64, 64), (640, 320), (100, 300)]),
)
def test_the_mask_fills_the_box(x, y, w, h, shape):
    width, height = shape
    region = region_of(saliency((x, y, x + w, y + h, 0.9)), width, height, SETTINGS, masks=True)
    assert region.mask.shape == (height, width)
    rows, columns = np.flatnonzero(region.mask.any(axis=1)), np.flatnonzero(region.mask.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    cell = max(width, height) / 64
    np.testing.assert_allclose(found, region.box_xyxy_px, atol=max(1.0, cell / 2))


def test_the_mask_is_of_the_largest_component_alone():
    region = region_of(saliency((0, 0, 8, 8, 0.9), (30, 30, 50, 50, 0.9)), 64, 64, SETTINGS, masks=True)
    assert not region.mask[:20, :20].any()
    assert region.mask[30:50, 30:50].all()


def brightness(batch: np.ndarray) -> np.ndarray:
    """The network's input, normalised as ImageNet's, back to its red channel in [0, 1]."""
    return (batch[:, :1] * 0.229 + 0.485).astype(np.float32)


def bright_on_dark(box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 200
    return pixels


def localizer(**options) -> SaliencyLocalizer:
    session = FunctionSession(brightness)
    return SaliencyLocalizer(session, SaliencySettings(size_px=256), "f" * 64, input_name="photo", **options)


def test_a_localizer_finds_the_object_in_photographs_of_any_shape():
    boxes = [(20, 30, 60, 90), (100, 10, 180, 40)]
    photos = [bright_on_dark(boxes[0], 120, 80), bright_on_dark(boxes[1], 60, 320)]
    for region, box in zip(localizer().locate(photos), boxes, strict=True):
        np.testing.assert_allclose(region.box_xyxy_px, box, atol=1.5)


def test_a_localizer_answers_a_batch_as_one_by_one():
    photos = [bright_on_dark((20, 30, 60, 90), 120, 80), photo(7), bright_on_dark((5, 5, 30, 20), 60, 320)]
    batch = localizer(masks=True).locate(photos)
    assert batch[1] is None
    for pixels, region in zip(photos, batch, strict=True):
        (single,) = localizer(masks=True).locate([pixels])
        assert (single is None) == (region is None)
        if region is not None:
            assert single.box_xyxy_px == region.box_xyxy_px
            np.testing.assert_array_equal(single.mask, region.mask)


def test_the_network_gets_normalised_squares():
    session = FunctionSession(brightness)
    SaliencyLocalizer(session, SaliencySettings(size_px=256), "f", input_name="photo").locate([photo(50), photo(100)])
    (feed,) = session.feeds
    assert feed["photo"].shape == (2, 3, 256, 256)
    # Divided by its own maximum every uniform photograph is white: (1 - mean) / std.
    np.testing.assert_allclose(feed["photo"][:, :, 0, 0], [[2.2489083, 2.4285714, 2.64]] * 2, rtol=1e-5)


def test_a_black_photograph_divides_by_no_zero():
    assert localizer().locate([photo(0)]) == [None]


def test_no_photographs_run_nothing():
    session = FunctionSession(brightness)
    assert SaliencyLocalizer(session, SETTINGS, "f", input_name="photo").locate([]) == []
    assert session.feeds == []


def test_the_key_changes_with_weights_settings_and_masks():
    def key(digest: str = "a" * 64, masks: bool = False, **changes: float) -> str:
        return SaliencyLocalizer(
            FunctionSession(brightness), SaliencySettings(**changes), digest, input_name="photo", masks=masks
        ).key

    keys = {key(), key(digest="b" * 64), key(masks=True), key(threshold=0.4), key(size_px=352)}
    assert len(keys) == 5
    assert all(len(k) <= 64 for k in keys)


def jobs(numbers, table):
    return [(f"digest {i}", lambda i=i: table.locate([photo(i)])[0]) for i in numbers]


def test_the_cache_keeps_regions_and_what_was_not_found(tmp_path):
    mask = np.random.default_rng(0).random((32, 48)) < 0.5
    regions = [BOX, None, Region((0.25, 1.5, 3.0, 4.0), 0.5, mask)]
    assert list(RegionCache(tmp_path, "k").fill(jobs(range(3), TableLocalizer(regions)))) == [3]
    loaded = RegionCache(tmp_path, "k").load()
    assert list(loaded) == ["digest 0", "digest 1", "digest 2"]
    assert loaded["digest 0"].box_xyxy_px == BOX.box_xyxy_px
    assert loaded["digest 1"] is None
    assert (loaded["digest 2"].box_xyxy_px, loaded["digest 2"].score) == ((0.25, 1.5, 3.0, 4.0), 0.5)
    np.testing.assert_array_equal(loaded["digest 2"].mask, mask)


def test_what_is_in_the_cache_is_not_looked_at_again(tmp_path):
    cache, table = RegionCache(tmp_path, "k"), TableLocalizer([BOX, None, BOX])
    list(cache.fill(jobs([0, 1], table)))
    assert list(cache.fill(jobs([0, 1, 2], table))) == [1]
    assert table.seen == [0, 1, 2]


def test_a_photograph_that_occurs_twice_is_looked_at_once(tmp_path):
    table = TableLocalizer([BOX, BOX])
    list(RegionCache(tmp_path, "k").fill(jobs([0, 1, 0], table)))
    assert table.seen == [0, 1]


def test_localizers_do_not_share_their_regions(tmp_path):
    list(RegionCache(tmp_path, "one").fill(jobs([0], TableLocalizer([BOX]))))
    assert RegionCache(tmp_path, "other").load() == {}


def test_shards_are_bounded(tmp_path):
    n = 2 * _SHARD + 3
    assert list(RegionCache(tmp_path, "k").fill(jobs(range(n), TableLocalizer([BOX] * n)), workers=2)) == [32, 32, 3]
    assert len(list((tmp_path / "k").glob("*.parquet"))) == 3


@pytest.mark.parametrize("content", [b"", b"no table", b"PAR1 and the rest is lost"])
def test_a_corrupt_shard_is_named(tmp_path, content):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "a.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.parquet is no readable table of regions: .*; delete it to redo it$"):
        RegionCache(tmp_path, "k").load()


def test_a_shard_of_another_table_is_named(tmp_path):
    (tmp_path / "k").mkdir()
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "k" / "a.parquet")
    with pytest.raises(ArtifactError, match=r"a\.parquet is no readable table of regions: "):
        RegionCache(tmp_path, "k").load()


PROGRAM = """
    import sys, time
    from pathlib import Path
    from l2r2.localization import RegionCache
    from tests.fakes import BOX, TableLocalizer, photo

    class Slow(TableLocalizer):
        def locate(self, photos):
            time.sleep(0.01)
            print("looked at", int(photos[0][0, 0, 0]), flush=True)
            return super().locate(photos)

    slow = Slow([BOX, None] * 50)
    jobs = [(f"digest {i}", lambda i=i: slow.locate([photo(i)])[0]) for i in range(100)]
    for added in RegionCache(Path(sys.argv[1]), "k").fill(jobs):
        print("added", added, flush=True)
"""


def test_a_kill_midway_loses_no_photograph_and_none_is_done_twice(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    while "looked at 70" not in first.stdout.readline():  # in the middle of the third shard
        pass
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    first.stdout.close()
    kept = RegionCache(tmp_path, "k").load()
    assert set(kept) == {f"digest {i}" for i in range(64)}

    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    looked = [int(line.split()[-1]) for line in second.stdout.splitlines() if line.startswith("looked")]
    assert looked == list(range(64, 100))
    regions = RegionCache(tmp_path, "k").load()
    assert len(regions) == 100
    assert all((regions[f"digest {i}"] is None) == (i % 2 == 1) for i in range(100))
    rows = pl.concat([pl.read_parquet(shard) for shard in (tmp_path / "k").glob("*.parquet")])
    assert rows["digest"].is_unique().all()
