import numpy as np
import pytest

from l2r2.errors import InputError, MetadataError
from l2r2.types import MONTHS, Candidate, Classifier, Localizer, Prediction, Region, Session, make_metadata
from tests.fakes import FunctionSession, TableClassifier, TableLocalizer


@pytest.mark.parametrize(("month", "expected"), [(1, "1"), (12, "12"), ("3", "3"), ("03", "3"), (" 7 ", "7")])
def test_a_month_becomes_its_number(month, expected):
    assert make_metadata(month=month) == {"month": expected}


@pytest.mark.parametrize(
    "month", ["13", 0, "0", "00", "x", "٣", "²", "-3", "+3", "1.0", 3.0, True, "1e1", "June", 13, -1, "003", "1 2"]
)
def test_what_is_no_month_is_refused(month):
    with pytest.raises(
        MetadataError, match=r"^month is '.*'; expected a whole number from 1 \(January\) to 12, or nothing$"
    ):
        make_metadata(month=month)


def test_a_month_of_many_digits_is_refused_in_few():
    with pytest.raises(MetadataError) as caught:
        make_metadata(month="1" * 5000)
    assert len(str(caught.value)) < 120


def test_months_are_twelve():
    assert {str(month) for month in range(1, 13)} == MONTHS


@pytest.mark.parametrize("blank", [None, "", "  ", "\t\n"])
def test_what_is_blank_is_not_known(blank):
    assert make_metadata(habitat=blank, substrate=blank, month=blank, soil=blank) == {}


def test_values_are_stripped_and_other_sources_kept():
    assert make_metadata(" forest ", "wood", 5, soil="acid") == {
        "habitat": "forest",
        "substrate": "wood",
        "month": "5",
        "soil": "acid",
    }


@pytest.mark.parametrize(
    "box", [(5.0, 0.0, 5.0, 9.0), (6.0, 0.0, 5.0, 9.0), (0.0, 9.0, 5.0, 9.0), (0.0, 0.0, np.inf, 1.0)]
)
def test_an_empty_box_is_refused(box):
    with pytest.raises(InputError, match=r"is empty; expected left < right and top < bottom, in pixels$"):
        Region(box, 0.5)


def test_a_box_of_nan_is_refused():
    with pytest.raises(InputError, match=r"^box \(nan, "):
        Region((float("nan"), 0.0, 1.0, 1.0), 0.5)


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan")])
def test_a_score_is_a_share(score):
    with pytest.raises(InputError, match=r"^region score is .*; expected a number in \[0, 1\]$"):
        Region((0.0, 0.0, 1.0, 1.0), score)


def test_the_answer_is_the_first_candidate():
    candidates = (Candidate(2, "c", 0.7), Candidate(0, "a", 0.3))
    assert Prediction(candidates, None, (4, 3), (), {}, None, (), ()).answer is candidates[0]


def test_the_fakes_keep_the_protocols():
    assert isinstance(TableLocalizer([]), Localizer)
    assert isinstance(TableClassifier(np.zeros((1, 2))), Classifier)
    assert isinstance(FunctionSession(lambda x: x), Session)
    assert not isinstance(TableLocalizer([]), Classifier)


def test_a_region_of_another_size_is_the_same_region():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 15:30] = True
    region = Region((15, 10, 30, 20), 0.5, mask)
    double = region.resized((60, 40), (120, 80))
    assert double.box_xyxy_px == (30, 20, 60, 40)
    np.testing.assert_array_equal(double.mask, mask.repeat(2, axis=0).repeat(2, axis=1))
    back = double.resized((120, 80), (60, 40))
    assert back.box_xyxy_px == region.box_xyxy_px
    np.testing.assert_array_equal(back.mask, mask)
    assert region.resized((60, 40), (60, 40)) is region
