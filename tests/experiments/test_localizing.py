"""Regions of a data set that brings its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from l2r2.config import DetectorSettings, Recipe, TruthSettings
from l2r2.datasets import Card, Dataset
from l2r2.datasets.dataset import make_dataset
from l2r2.errors import ConfigError
from l2r2.experiments.localizing import fill_regions, known_regions, localizer_of, make_localizer, regions_key
from l2r2.types import View
from tests.tiny import BLUE, GREEN, RED, encode, make_photo


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two photographs in each of train, val and test, with masks beside them by relative paths."""
    rows = []
    for i, (split, label) in enumerate([(s, c) for s in ("train", "val", "test") for c in ("a", "b")]):
        colour = (RED, GREEN, BLUE)[i % 3]
        (tmp_path / f"{i}.png").write_bytes(encode(make_photo(colour, (i, i, i))))
        mask = np.zeros((120, 160), np.uint8)
        mask[36:84, 52:108] = 255
        Image.fromarray(mask).save(tmp_path / f"m{i}.png")
        rows.append({"path": f"{i}.png", "label": label, "split": split, "mask": f"m{i}.png"})
    return make_dataset(tmp_path, Card(name="truth"), pl.DataFrame(rows))


def test_ground_truth_is_read_from_relative_paths(dataset: Dataset) -> None:
    truth = make_localizer(TruthSettings(), masks=True)
    assert sum(fill_regions(dataset, truth)) == 6
    regions = known_regions(dataset, regions_key(dataset, truth))
    assert {region.box_xyxy_px for region in regions.values() if region is not None} == {(52, 36, 108, 84)}


def test_other_masks_are_other_regions(dataset: Dataset) -> None:
    truth = make_localizer(TruthSettings(), masks=True)
    before = regions_key(dataset, truth)
    Image.fromarray(np.full((120, 160), 255, np.uint8)).save(dataset.folder / "m0.png")
    after = regions_key(dataset, truth)
    assert before != after
    assert sum(fill_regions(dataset, truth)) == 6
    widest = known_regions(dataset, after)[dataset.table["digest"][0]]
    assert widest is not None
    assert widest.box_xyxy_px == (0, 0, 160, 120)


def test_views_that_need_no_region_need_no_localizer() -> None:
    assert localizer_of(Recipe(name="x", views=(View.FULL, View.CENTERCROP))) is None


def test_masked_views_of_a_detector_need_a_segmenter() -> None:
    settings = DetectorSettings(name="owlv2", model="none", texts=("dog",))
    with pytest.raises(ConfigError, match=r"FG_M and BG_S need masks, .*; set localizer\.segmenter"):
        make_localizer(settings, masks=True)
