"""Figures of a lower precision, worked by hand; what is outside is refused with all of them."""

from __future__ import annotations

import numpy as np
import pytest

from l2r2.errors import InputError, ParityError
from l2r2.types import Region
from l2r2_export.precision_parity import (
    REGION_TOLERANCES,
    TOLERANCES,
    compare_precision,
    compare_regions,
    gate,
)

GROUPS = np.array(["a", "b"])
HALF = np.log(np.array([[0.5, 0.5], [0.75, 0.25]], np.float32))


def test_logit_figures_worked_by_hand() -> None:
    other = np.log(np.array([[0.25, 0.75], [0.75, 0.25]], np.float32))
    figures = compare_precision(HALF, other, np.array([1, 0]), GROUPS)
    # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75) = 0.5 log(4 / 3), on one of two photographs
    assert figures["kl"] == pytest.approx(0.5 * np.log(4 / 3), rel=1e-5)
    assert figures["mean_kl"] == pytest.approx(0.25 * np.log(4 / 3), rel=1e-5)
    assert figures["max_abs"] == pytest.approx(np.log(2), rel=1e-5)
    assert figures["mean_abs"] == pytest.approx((np.log(2) + np.log(1.5)) / 4, rel=1e-5)
    assert figures["top1_agreement"] == 0.5  # the tie went to the first class
    assert figures["accuracy"] == 1.0
    assert figures["accuracy_change"] == 0.5
    assert figures["accuracy_change_low"] == 0.0
    assert figures["accuracy_change_high"] == 1.0
    assert (figures["n"], figures["groups"]) == (2.0, 2.0)


def test_adding_one_number_to_all_logits_changes_no_probability() -> None:
    figures = compare_precision(HALF, HALF + 3, np.array([0, 0]), GROUPS)
    assert figures["mean_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["top1_agreement"] == 1.0


def test_logits_that_are_not_finite_are_refused_by_number() -> None:
    broken = HALF.copy()
    broken[1, 0] = np.nan
    with pytest.raises(ParityError, match=r"FG: logits of 1 of 2 photographs are not finite \(the first is number 1\)"):
        compare_precision(HALF, broken, np.array([0, 0]), GROUPS, "FG")


def test_other_rows_or_columns_are_refused() -> None:
    with pytest.raises(InputError, match="2 rows to compare with 1, 2 labels and 2 groups"):
        compare_precision(HALF, HALF[:1], np.array([0, 0]), GROUPS)
    with pytest.raises(InputError, match="at least one"):
        compare_precision(HALF[:0], HALF[:0], np.array([], int), GROUPS[:0])
    with pytest.raises(ParityError, match=r"logits \(2, 1\); expected \(2, 2\)"):
        compare_precision(HALF, HALF[:, :1], np.array([0, 0]), GROUPS)


def test_region_figures_worked_by_hand() -> None:
    square, right = Region((0, 0, 2, 2), 0.9), Region((1, 0, 3, 2), 0.7)
    figures = compare_regions([square, square, None, None], [right, square, None, square])
    assert figures["mean_iou"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["min_iou"] == pytest.approx(1 / 3)
    assert figures["found_agreement"] == 0.75
    assert figures["mean_score_change"] == pytest.approx(0.1)
    assert figures["n"] == 4.0


def test_nothing_found_by_both_agrees_and_no_photographs_are_refused() -> None:
    assert compare_regions([None], [None])["mean_iou"] == 1.0
    for reference, other in (([], []), ([None], [])):
        with pytest.raises(InputError, match="regions to compare with"):
            compare_regions(reference, other)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("top1_agreement", 0.959, "top1_agreement 0.959, at least 0.96"),
        ("accuracy_change", -0.0051, "accuracy_change -0.0051, at least -0.005"),
        ("mean_kl", 0.0051, "mean_kl 0.0051, at most 0.005"),
        ("mean_kl", float("nan"), "mean_kl nan, at most 0.005"),
    ],
)
def test_each_limit_of_a_classifier_is_kept(name: str, value: float, said: str) -> None:
    good = {"top1_agreement": 0.96, "accuracy_change": -0.005, "mean_kl": 0.005}
    gate("FG", good, TOLERANCES["int8"])
    with pytest.raises(ParityError, match=r"FG answers differently from FP32; expected .*all figures: ") as caught:
        gate("FG", {**good, name: value}, TOLERANCES["int8"])
    assert said in str(caught.value)


def test_each_limit_of_a_localizer_is_kept_and_a_missing_figure_is_outside() -> None:
    limits = REGION_TOLERANCES["int8"]
    assert limits.broken({"mean_iou": 0.95, "found_agreement": 0.95}) == []
    assert limits.broken({"mean_iou": 0.94, "found_agreement": 0.95}) == ["mean_iou 0.94, at least 0.95"]
    assert len(limits.broken({})) == 2


def test_a_lower_precision_may_never_be_held_more_tightly() -> None:
    for lower, higher in (("fp16", "fp32"), ("bf16", "fp16"), ("int8", "bf16")):
        assert TOLERANCES[lower].min_agreement <= TOLERANCES[higher].min_agreement  # type: ignore[index]
        assert REGION_TOLERANCES[lower].min_mean_iou <= REGION_TOLERANCES[higher].min_mean_iou  # type: ignore[index]
