"""The gates of exported detectors: each kind of difference is caught, by its own figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from l2r2.errors import InputError, ParityError
from l2r2.types import Region
from l2r2_export.detector_parity import as_set, check_detector, check_outputs, paired

PHOTOS = [np.zeros((20, 30, 3), np.uint8)] * 2


class Rows:
    """A session that gives what it was made with, whatever it is fed; or something else for one photograph alone."""

    def __init__(self, scores: list[float], alone: list[float] | None = None) -> None:
        self.scores, self.alone = scores, alone or scores

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        n = len(feed["pixels"])
        scores = np.tile(np.asarray(self.alone if n == 1 else self.scores, np.float32), (n, 1))
        return {"scores": scores, "boxes": np.repeat(scores[..., None], 4, axis=2)}


def test_another_order_is_no_difference_of_a_set() -> None:
    feeds = [{"pixels": np.zeros((2, 3, 4, 4), np.float32)}]
    first, turned = Rows([0.1, 0.5, 0.9]), Rows([0.5, 0.1, 0.9])
    figures = check_outputs(first, turned, feeds, ordered=False)
    assert figures["max_abs"] == pytest.approx(0.4)
    assert figures["max_abs_set"] == 0.0
    assert figures["same_rows"] == pytest.approx(1 / 3)
    with pytest.raises(ParityError, match=r"expected max_abs 0\.4, at most 0\.0001 \("):
        check_outputs(first, turned, feeds)
    with pytest.raises(ParityError, match=r"expected max_abs_set 0\.4, at most 0\.0001 \("):
        check_outputs(first, Rows([0.1, 0.1, 0.9]), feeds, ordered=False)
    mostly = Rows([0.1, 0.5, 0.9], alone=[0.1, 0.7, 0.9])
    assert check_outputs(first, mostly, feeds, least_rows=0.6)["batch_rows"] == pytest.approx(2 / 3)
    with pytest.raises(ParityError, match=r"expected batch_rows 0\.667, at least 0\.7 \("):
        check_outputs(first, mostly, feeds, least_rows=0.7)
    with pytest.raises(ParityError, match=r"expected same_rows 0\.333, at least 0\.7 \("):
        check_outputs(first, turned, feeds, least_rows=0.7)
    with pytest.raises(ParityError, match=r"expected batch_max_abs 0\.2, at most 0\.0001 \("):
        check_outputs(first, Rows([0.1, 0.5, 0.9], alone=[0.1, 0.7, 0.9]), feeds)
    with pytest.raises(ParityError, match=r"the exported model gave .*; expected .*, export again"):
        check_outputs(first, Rows([0.1]), feeds)
    with pytest.raises(InputError, match="no photographs to compare on"):
        check_outputs(first, first, [])


def test_sets_and_pairs_worked_by_hand() -> None:
    assert as_set(np.array([[0.0, 1.0], [5.0, 5.0]]), np.array([[5.0, 5.5], [0.25, 1.0]])) == 0.5
    left, right = Region((0, 0, 10, 10), 0.9), Region((20, 0, 30, 10), 0.8)
    moved = Region((1, 0, 11, 10), 0.85)
    assert paired([left, right], [right, moved]) == [(left, moved), (right, right)]
    assert paired([left, right], [moved]) == [(left, moved)]
    assert paired([], [left]) == []


NINE = Region((0, 0, 9, 9), 1)


class Says:
    """Finds the same in every photograph; or something else among others."""

    def __init__(self, regions: list[Region], among: list[Region] | None = None, decided: Any = NINE):
        self.regions, self.among, self.decided = regions, regions if among is None else among, decided

    def instances(self, photos: Any) -> list[list[Region]]:
        return [self.regions if len(photos) == 1 else self.among for _ in photos]

    def decide(self, photo: Any, instances: Sequence[Region]) -> Region | None:
        return self.decided


@pytest.mark.parametrize(
    ("exported", "figure"),
    [
        (Says([]), "count_agreement 0, at least 1"),
        (Says([Region((0, 0, 10, 9), 0.9)]), r"min_iou 0\.9, at least 0\.99"),
        (Says([Region((0, 0, 10, 10), 0.89)]), r"max_abs_score 0\.01, at most 0\.001"),
        (Says([Region((0, 0, 10, 10), 0.9)], among=[]), "batch_agreement 0, at least 1"),
        (Says([Region((0, 0, 10, 10), 0.9)], decided=None), "found_agreement 0, at least 1"),
        (
            Says([Region((0, 0, 10, 10), 0.9)], decided=Region((0, 0, 9, 8.1), 0.9)),
            r"min_region_iou 0\.9, at least 0\.95",
        ),
    ],
)
def test_each_difference_of_regions_is_caught(exported: Says, figure: str) -> None:
    reference = Says([Region((0, 0, 10, 10), 0.9)])
    figures = check_detector(reference, reference, PHOTOS)
    assert (figures["instances"], figures["min_iou"], figures["max_abs_score"]) == (2.0, 1.0, 0.0)
    with pytest.raises(ParityError, match=rf"expected {figure} \("):
        check_detector(reference, exported, PHOTOS)
