"""Two cascades on the same photographs: the figures by hand, and what is outside."""

from dataclasses import replace

import numpy as np
import pytest

from l2r2.errors import BackendError, InputError, ParityError
from l2r2.types import Stage
from l2r2_export.cascade_parity import CASCADE_TOLERANCES, Decision, compare_cascades, decide_all
from l2r2_export.precision_parity import gate
from tests.tiny import GREEN, MUDDY, RED, make_photo, make_tiny_bundle, make_uniform

FG, BOTH, FULL = (Stage.FG,), (Stage.FG, Stage.FULL), (Stage.FULL,)


def decisions(*rows):
    return [Decision(*row) for row in rows]


def test_the_figures_by_hand():
    before = decisions((0, 0.9, FG), (1, 0.8, FG), (2, 0.7, BOTH), (0, 0.6, FULL))
    after = decisions((0, 0.8, FG), (1, 0.8, BOTH), (1, 0.7, BOTH), (0, 0.5, FULL))
    labels, groups = np.array([0, 1, 2, 1]), np.array(["a", "b", "c", "c"])
    got = compare_cascades(before, after, labels, groups)
    assert got["answer_agreement"] == 0.75
    assert got["stage_agreement"] == 0.75
    assert got["mean_abs_probability"] == pytest.approx(0.2 / 3)
    assert got["max_abs_probability"] == pytest.approx(0.1)
    assert got["skipped_full"] == 0.25
    assert (got["accuracy"], got["accuracy_change"]) == (0.5, -0.25)
    assert got["accuracy_change_low"] <= -0.25 <= got["accuracy_change_high"]
    assert (got["n"], got["groups"]) == (4.0, 3.0)


@pytest.mark.parametrize("precision", CASCADE_TOLERANCES)
def test_the_same_decisions_pass_and_others_do_not(precision):
    before = decisions(*[(k % 3, 0.9, FG) for k in range(40)])
    labels, groups = np.arange(40) % 3, np.arange(40)
    gate("it", compare_cascades(before, before, labels, groups), CASCADE_TOLERANCES[precision])
    for change in ((1, 0.9, FG), (0, 0.9, BOTH)):
        after = decisions(*[change if k % 10 == 0 else (k % 3, 0.9, FG) for k in range(40)])
        with pytest.raises(ParityError, match=r"^it answers differently .*_agreement 0\.9"):
            gate("it", compare_cascades(before, after, labels, groups), CASCADE_TOLERANCES[precision])


def test_rows_must_be_as_many():
    with pytest.raises(InputError, match=r"^cascade: 1 decisions to compare with 0, 1 labels and 1 groups; "):
        compare_cascades(decisions((0, 1.0, FG)), [], np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(InputError, match=r"^cascade: 0 decisions"):
        compare_cascades([], [], np.zeros(0, int), np.zeros(0, int))


def test_decisions_are_the_recognizers(tmp_path):
    recognizer = make_tiny_bundle(tmp_path / "tiny").recognizer()
    photos = [make_photo(RED), make_photo(GREEN), make_photo(MUDDY), make_uniform()]
    seen = []
    got = decide_all(recognizer, [lambda p=p: p for p in photos], [{}, {"habitat": "forest"}, {}, {}], seen.append)
    expected = recognizer.recognize(photos, [{}, {"habitat": "forest"}, {}, {}])
    assert [(d.answer, d.stages) for d in got] == [(p.answer.index, tuple(p.stages)) for p in expected]
    assert [d.probability for d in got] == pytest.approx([p.answer.probability for p in expected])
    assert [d.region and d.region.box_xyxy_px for d in got] == [p.region and p.region.box_xyxy_px for p in expected]
    assert seen == [1, 2, 3, 4]


def test_a_model_that_fails_is_named(tmp_path):
    class Broken:
        key = "broken"

        def locate(self, photos):
            raise BackendError("no memory")

    recognizer = replace(make_tiny_bundle(tmp_path / "tiny").recognizer(), localizer=Broken())
    with pytest.raises(ParityError, match=r"^cascade: a model failed on photograph 1: no memory$"):
        decide_all(recognizer, [lambda: make_photo(RED)], [{}])
