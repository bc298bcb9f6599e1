import io
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from l2r2.calibration import Temperature
from l2r2.cascade import Policy, Veto
from l2r2.config import ViewSettings
from l2r2.conformal import PredictionSets
from l2r2.errors import DeadlinePassed, InputError
from l2r2.fusion import Average, MaxConfidence, MaxScaledConfidence, Operator, Threshold, WeightedLogits
from l2r2.images import Photograph, decode
from l2r2.priors import Priors, count_priors
from l2r2.recognizer import Recognizer, _largest
from l2r2.types import Caution, Prediction, Region, Stage, View
from tests.fakes import BOX, RAW, PixelClassifier, TableLocalizer, make_recognizer, photo

SURE, UNSURE = [4.0, 0.0, 0.0], [0.4, 0.0, 0.0]  # softmax: 0.965 and 0.427

# Class 0 in the forest, class 1 on the meadow, class 2 in both; months say nothing.
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
PRIORS = count_priors(
    LABELS,
    {"habitat": ["forest"] * 3 + ["meadow"] * 3 + ["forest", "meadow"] * 2, "month": ["5"] * 10},
    3,
)
METADATA = st.sampled_from(
    [{}, {"habitat": "forest"}, {"habitat": "meadow", "month": "5"}, {"habitat": "desert", "altitude": "high"}]
)


def scripted(seed: int, n: int = 8, k: int = 3) -> tuple[np.ndarray, np.ndarray, list[Region | None]]:
    """Logits of FG and FULL, and regions, of n photographs."""
    rng = np.random.default_rng(seed)
    fg, full = (rng.normal(size=(n, k)).astype(np.float32) * rng.choice([1, 4], (n, 1)) for _ in range(2))
    return fg, full, [BOX if found else None for found in rng.random(n) < 0.75]


def mixed(n: int) -> list[dict[str, str]]:
    """Metadata that differ from photograph to photograph."""
    kinds = [{}, {"habitat": "forest"}, {"habitat": "meadow", "month": "5"}, {"habitat": "desert", "altitude": "high"}]
    return [kinds[i % 4] for i in range(n)]


def seen(recognizer: Recognizer, stage: Stage) -> list[int]:
    return recognizer.classifiers[stage].seen


def assert_same(one: Prediction, other: Prediction) -> None:
    assert [c.index for c in one.candidates] == [c.index for c in other.candidates]
    assert [c.probability for c in one.candidates] == pytest.approx([c.probability for c in other.candidates], rel=1e-5)
    assert (one.region, one.size_px, one.stages) == (other.region, other.size_px, other.stages)
    assert (one.cautions, one.unrecognized) == (other.cautions, other.unrecognized)
    assert one.stage_confidence == pytest.approx(other.stage_confidence, rel=1e-5)
    assert one.explanation.rival == other.explanation.rival
    assert one.explanation.parts == pytest.approx(other.explanation.parts, abs=1e-4)
    assert set(one.latency_ms) == set(other.latency_ms)


OPERATORS = [
    MaxConfidence(),
    MaxScaledConfidence(),
    Threshold(0.6),
    Average(0.3),
    WeightedLogits(np.array([1, 0.5, 0.2], np.float32), np.array([0.1, 1, 0.7], np.float32)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_a_batch_equals_one_by_one(operator):
    fg, full, regions = scripted(0)
    recognizer = make_recognizer(fg, full, regions, threshold=0.6, operator=operator, priors=PRIORS, temperature=1.5)
    photos, metadata = [photo(i) for i in range(8)], mixed(8)
    batch = recognizer.recognize(photos, metadata)
    assert {prediction.stages for prediction in batch} == {(Stage.FG,), (Stage.FG, Stage.FULL), (Stage.FULL,)}
    for i, prediction in enumerate(batch):
        (single,) = recognizer.recognize([photos[i]], [metadata[i]])
        assert_same(single, prediction)


def test_a_batch_of_different_photographs_equals_one_by_one():
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (32 + 7 * i, 90 - 5 * i, 3), dtype=np.uint8) for i in range(6)]
    boxes = [Region((3.5, 2.0, 20.0 + i, 25.0), 0.9, np.ones(p.shape[:2], bool)) for i, p in enumerate(photos)]
    regions = [box if i != 2 else None for i, box in enumerate(boxes)]
    recognizer = Recognizer(
        class_names=("a", "b", "c"),
        localizer=TableLocalizer([]),
        classifiers={Stage.FG: PixelClassifier(3, 1), Stage.FULL: PixelClassifier(3, 2)},
        views={Stage.FG: View.FG_M, Stage.FULL: View.BG_S},
        view_settings=ViewSettings(size_px=32),
        policy=Policy({s: Temperature(np.array([1.0])) for s in Stage}, Average(), 0.95),
        priors=PRIORS,
    )
    batch = recognizer.recognize(photos, mixed(6), regions)
    for i, prediction in enumerate(batch):
        (single,) = recognizer.recognize([photos[i]], [mixed(6)[i]], [regions[i]])
        assert_same(single, prediction)


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), t=st.floats(0, 1), metadata=st.lists(METADATA, min_size=8, max_size=8))
def test_the_cascade_answers_as_if_both_had_always_run(seed, t, metadata):
    """⊕R: skipping FULL loses nothing, on any photograph."""
    fg, full, regions = scripted(seed)
    recognizer = make_recognizer(fg, full, regions, threshold=t, operator=Threshold(t), priors=PRIORS, temperature=1.3)
    answers = recognizer.recognize([photo(i) for i in range(8)], metadata, top_k=3)
    log_prior = PRIORS.log_prior(metadata)
    both = [recognizer.policy.evidence(stage, z, log_prior) for stage, z in ((Stage.FG, fg), (Stage.FULL, full))]
    always = np.where(
        np.array([r is not None for r in regions])[:, None], Threshold(t)(*both, log_prior), both[1].belief
    )
    assert [a.answer.index for a in answers] == always.argmax(axis=1).tolist()
    for answer, row in zip(answers, np.exp(always), strict=True):
        for candidate in answer.candidates:
            assert candidate.probability == pytest.approx(row[candidate.index], rel=1e-5)


def test_full_runs_only_for_the_unsure_and_the_not_found():
    recognizer = make_recognizer([SURE, UNSURE, SURE, SURE], [SURE] * 4, [BOX, BOX, None, BOX])
    answers = recognizer.recognize([photo(i) for i in range(4)])
    assert seen(recognizer, Stage.FG) == [0, 1, 3]
    assert seen(recognizer, Stage.FULL) == [1, 2]
    assert [a.stages for a in answers] == [(Stage.FG,), (Stage.FG, Stage.FULL), (Stage.FULL,), (Stage.FG,)]


def test_full_does_not_run_when_every_photograph_is_sure():
    recognizer = make_recognizer([SURE, SURE], [SURE, SURE], [BOX, BOX])
    recognizer.recognize([photo(0), photo(1)])
    assert seen(recognizer, Stage.FULL) == []


def test_fg_does_not_run_when_nothing_was_found():
    recognizer = make_recognizer([SURE], [UNSURE], [None])
    recognizer.recognize([photo(0)])
    assert seen(recognizer, Stage.FG) == []


def test_metadata_can_make_fg_sure():
    recognizer = make_recognizer([UNSURE], [SURE], [BOX], threshold=0.5, priors=PRIORS)
    recognizer.recognize([photo(0)], [{"habitat": "forest"}])
    assert seen(recognizer, Stage.FULL) == []


def test_where_nothing_was_found_the_answer_is_fulls():
    # softmax(0, ln 3, 0) = (1, 3, 1) / 5
    recognizer = make_recognizer([SURE], [[0.0, np.log(3.0), 0.0]], [None], operator=Average())
    (answer,) = recognizer.recognize([photo(0)])
    assert (answer.answer.name, answer.answer.probability) == ("class 1", pytest.approx(0.6))
    assert answer.region is None


def test_golden_escalation():
    # FG (2, 1, 1) / 4 is below the gate; FULL (1, 8, 1) / 10; their mean (0.3, 0.525, 0.175).
    fg, full = np.log([[2.0, 1.0, 1.0]]), np.log([[1.0, 8.0, 1.0]])
    (answer,) = make_recognizer(fg, full, [BOX], threshold=0.6, operator=Average()).recognize([photo(0)])
    assert [(c.index, c.probability) for c in answer.candidates] == [
        (1, pytest.approx(0.525)),
        (0, pytest.approx(0.3)),
        (2, pytest.approx(0.175)),
    ]
    assert answer.stage_confidence == pytest.approx({Stage.FG: 0.5, Stage.FULL: 0.8})


def test_the_temperature_is_applied():
    # softmax((ln 16, 0, 0) / 2) = (4, 1, 1) / 6
    recognizer = make_recognizer([[np.log(16.0), 0.0, 0.0]], [SURE], [BOX], threshold=0.6, temperature=2.0)
    assert recognizer.recognize([photo(0)])[0].answer.probability == pytest.approx(4 / 6)


def test_each_classifier_sees_its_own_view():
    pixels = photo(0)
    pixels[4:20, 8:24] = 1  # inside the box photograph 0 looks like photograph 1
    recognizer = make_recognizer([SURE, UNSURE], [SURE, SURE], [BOX, BOX])
    recognizer.recognize([pixels])
    assert (seen(recognizer, Stage.FG), recognizer.localizer.seen) == ([1], [0])


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    t=st.floats(0, 1),
    operator=st.sampled_from([o for o in OPERATORS if o.name != "R"]),
    metadata=st.lists(METADATA, min_size=8, max_size=8),
)
def test_an_explanation_sums_to_the_log_odds(seed, t, operator, metadata):
    fg, full, regions = scripted(seed)
    recognizer = make_recognizer(fg, full, regions, threshold=t, operator=operator, priors=PRIORS, temperature=0.8)
    for answer in recognizer.recognize([photo(i) for i in range(8)], metadata):
        why, (first, second) = answer.explanation, answer.candidates[:2]
        assert why.rival == second.name
        assert why.total == pytest.approx(np.log(first.probability) - np.log(second.probability), abs=1e-3)
        assert sum(why.parts.values()) == pytest.approx(why.total, abs=1e-4)
        for stage in Stage:
            assert stage in answer.stages or why.parts[stage] == 0.0


def test_an_explanation_golden():
    # FG alone: ln 4; the forest: P̃(0|f) / P(0) over P̃(2|f) / P(2), α = 1:
    # P = (0.3, 0.3, 0.4), n(forest) = 5 of class 0: 3, class 2: 2 → (3 / 0.3 + 1) / (2 / 0.4 + 1) = 11 / 6
    recognizer = make_recognizer([np.log([4.0, 0.01, 1.0])], [SURE], [BOX], priors=PRIORS)
    (answer,) = recognizer.recognize([photo(0)], [{"habitat": "forest"}])
    assert answer.explanation.rival == "class 2"
    assert answer.explanation.parts == pytest.approx(
        {"FG": np.log(4), "FULL": 0.0, "habitat": np.log(11 / 6)}, rel=1e-5
    )


def test_an_explanation_of_an_escalation_golden():
    # Odds of class 1 to class 0. FG: 1 : 2; FULL: 8 : 1; their mean 0.525 : 0.3 = 1.75; so FULL added ln (1.75 / 0.5).
    fg, full = np.log([[2.0, 1.0, 1.0]]), np.log([[1.0, 8.0, 1.0]])
    (answer,) = make_recognizer(fg, full, [BOX], threshold=0.6, operator=Average()).recognize([photo(0)])
    assert answer.explanation.parts == pytest.approx({"FG": np.log(0.5), "FULL": np.log(3.5)}, rel=1e-5)


def test_an_explanation_of_nothing_found_golden():
    # FULL alone, odds 8 : 1 at temperature 3: (ln 8) / 3
    recognizer = make_recognizer([SURE], np.log([[1.0, 8.0, 0.5]]), [None], temperature=3.0)
    (answer,) = recognizer.recognize([photo(0)])
    assert answer.explanation.parts == pytest.approx({"FG": 0.0, "FULL": np.log(2)}, rel=1e-5)


def test_a_metadata_source_named_like_a_stage_spoils_no_explanation():
    (answer,) = make_recognizer([SURE], [SURE], [BOX], priors=PRIORS).recognize([photo(0)], [{"FG": "x", "FULL": "y"}])
    assert sum(answer.explanation.parts.values()) == pytest.approx(answer.explanation.total, abs=1e-5)
    assert answer.unrecognized == ("FG", "FULL")


def test_nothing_found_is_a_caution():
    assert make_recognizer([SURE], [SURE], [None]).recognize([photo(0)])[0].cautions == (Caution.NOTHING_FOUND,)


def test_fg_unsure_and_full_sure_is_a_caution():
    assert make_recognizer([UNSURE], [SURE], [BOX]).recognize([photo(0)])[0].cautions == (Caution.FG_UNSURE_FULL_SURE,)


def test_fg_and_full_both_unsure_is_no_caution():
    assert make_recognizer([UNSURE], [UNSURE], [BOX]).recognize([photo(0)])[0].cautions == ()


def test_full_must_be_surer_than_a_high_gate_for_the_caution():
    # FULL's 0.965 is above 0.9 but not above the gate of 0.97 that FG failed.
    recognizer = make_recognizer([SURE], [SURE], [BOX], threshold=0.97)
    assert recognizer.recognize([photo(0)])[0].cautions == ()


def test_an_answer_that_the_prior_flipped_is_a_caution():
    recognizer = make_recognizer([[0.5, 0.0, 0.0]], [[0.5, 0.0, 0.0]], [BOX], threshold=0.0, priors=PRIORS)
    plain, flipped = recognizer.recognize([photo(0), photo(0)], [{}, {"habitat": "meadow"}])
    assert (plain.answer.index, plain.cautions) == (0, ())
    assert (flipped.answer.index, flipped.cautions) == (1, (Caution.FLIPPED_BY_PRIOR,))


def test_cautions_come_most_serious_first():
    recognizer = make_recognizer([SURE], [[0.5, 0.0, 0.0]], [None], priors=PRIORS)
    (answer,) = recognizer.recognize([photo(0)], [{"habitat": "meadow"}])
    assert answer.cautions == (Caution.NOTHING_FOUND, Caution.FLIPPED_BY_PRIOR)


@pytest.mark.parametrize("classes", [8, 100, 1000])
def test_a_tie_is_no_flip(classes):
    recognizer = make_recognizer(np.zeros((1, classes)), np.zeros((1, classes)), [BOX], threshold=1.0)
    (answer,) = recognizer.recognize([photo(0)])
    assert [c.index for c in answer.candidates] == [0, 1, 2, 3, 4]
    assert answer.cautions == ()


def test_unrecognized_metadata_are_echoed_and_neutral():
    recognizer = make_recognizer([SURE], [SURE], [BOX], priors=PRIORS)
    strange, plain = recognizer.recognize([photo(0)] * 2, [{"habitat": "desert", "altitude": "high", "month": "5"}, {}])
    assert strange.unrecognized == ("habitat", "altitude")
    assert plain.unrecognized == ()
    assert strange.answer.probability == pytest.approx(plain.answer.probability)


def test_given_regions_replace_the_localizer():
    recognizer = make_recognizer([SURE, SURE], [UNSURE, UNSURE], [BOX, BOX])
    answers = recognizer.recognize([photo(0), photo(1)], regions=[None, BOX])
    assert recognizer.localizer.seen == []
    assert [a.stages for a in answers] == [(Stage.FULL,), (Stage.FG,)]
    assert [a.region for a in answers] == [None, BOX]


def test_the_size_is_width_and_height():
    assert make_recognizer([SURE], [SURE], [BOX]).recognize([photo(0, 40, 70)])[0].size_px == (70, 40)


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_top_k_bounds_the_candidates(top_k, expected):
    (answer,) = make_recognizer([SURE], [SURE], [BOX]).recognize([photo(0)], top_k=top_k)
    assert len(answer.candidates) == expected
    assert answer.explanation.rival == "class 1"


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_is_positive(top_k):
    with pytest.raises(InputError, match=rf"^top_k is {top_k}; expected at least 1$"):
        make_recognizer([SURE], [SURE], [BOX]).recognize([photo(0)], top_k=top_k)


def test_candidates_sum_to_one_and_descend():
    fg, full, regions = scripted(4)
    for answer in make_recognizer(fg, full, regions).recognize([photo(i) for i in range(8)], top_k=3):
        probabilities = [c.probability for c in answer.candidates]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)


def with_policy(recognizer: Recognizer, **changes: object) -> Recognizer:
    return replace(recognizer, policy=replace(recognizer.policy, **changes))


def test_a_prediction_set_lists_what_the_answer_may_be():
    recognizer = make_recognizer([[2.0, 1.5, -3.0]], [[0.0] * 3], [BOX], threshold=0.1)
    (answer,) = with_policy(recognizer, sets=PredictionSets(0.2, 0.9)).recognize([photo(0)])
    among = answer.prediction_set
    assert [c.name for c in among.members] == ["class 0", "class 1"]
    assert (among.size, among.coverage) == (2, 0.9)
    assert among.members[0] == answer.answer


def test_a_set_of_very_many_classes_is_cut_but_counted():
    logits = np.linspace(0, 1e-3, 150)[None]
    recognizer = make_recognizer(logits, logits, [BOX], threshold=0.0)
    (answer,) = with_policy(recognizer, sets=PredictionSets(0.0, 0.9)).recognize([photo(0)])
    assert (len(answer.prediction_set.members), answer.prediction_set.size) == (100, 150)
    assert answer.prediction_set.members[0].index == 149


def test_without_sets_there_is_none():
    assert make_recognizer([SURE], [SURE], [BOX]).recognize([photo(0)])[0].prediction_set is None


def test_a_withheld_answer_says_so_first():
    recognizer = make_recognizer([UNSURE, SURE], [SURE, SURE], [BOX, BOX], threshold=0.8)
    veto = Veto(np.array([False, True, False]), 0.05)
    unsure, sure = with_policy(recognizer, veto=veto).recognize([photo(0), photo(1)])
    assert (unsure.withheld, sure.withheld) == (True, False)
    assert unsure.cautions[0] is Caution.HAZARD
    assert Caution.HAZARD not in sure.cautions
    assert unsure.answer.name == "class 0"


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_sets_and_vetoes_of_a_batch_equal_one_by_one(operator):
    fg, full, regions = scripted(5)
    t = operator.t if isinstance(operator, Threshold) else 0.6
    recognizer = make_recognizer(fg, full, regions, threshold=t, operator=operator, priors=PRIORS)
    recognizer = with_policy(recognizer, sets=PredictionSets(0.2, 0.9), veto=Veto(np.array([True, False, False]), 0.1))
    photos, metadata = [photo(i) for i in range(8)], mixed(8)
    batch = recognizer.recognize(photos, metadata)
    assert {p.withheld for p in batch} == {True, False}
    for i, together in enumerate(batch):
        (alone,) = recognizer.recognize([photos[i]], [metadata[i]])
        assert (together.withheld, together.cautions) == (alone.withheld, alone.cautions)
        members = [[c.index for c in p.prediction_set.members] for p in (together, alone)]
        assert members[0] == members[1]


def test_an_empty_batch():
    recognizer = make_recognizer([SURE], [SURE], [BOX])
    assert recognizer.recognize([]) == []
    assert recognizer.recognize([], metadata=[], regions=[]) == []
    assert recognizer.localizer.seen == []


@pytest.mark.parametrize("arguments", [{"metadata": [{}]}, {"regions": [BOX]}, {"metadata": [{}, {}], "regions": []}])
def test_lengths_that_differ_are_refused(arguments):
    with pytest.raises(
        InputError, match=r"^2 photographs but [12] metadata or other regions; expected as many of each$"
    ):
        make_recognizer([SURE], [SURE], [BOX]).recognize([photo(0), photo(0)], **arguments)


FG_KEYS, FULL_KEYS = {"render FG", "classify FG"}, {"render FULL", "classify FULL"}


def test_latency_names_the_stages_that_ran_for_each_photograph():
    recognizer = make_recognizer([SURE, UNSURE, SURE], [SURE] * 3, [BOX, BOX, None])
    alone, escalated, missing = (a.latency_ms for a in recognizer.recognize([photo(i) for i in range(3)]))
    assert set(alone) == {"locate", "fuse"} | FG_KEYS
    assert set(escalated) == {"locate", "fuse"} | FG_KEYS | FULL_KEYS
    assert set(missing) == {"locate", "fuse"} | FULL_KEYS
    assert all(ms >= 0 for ms in escalated.values())


def test_a_stages_time_is_shared_by_the_photographs_it_ran_for(monkeypatch):
    ticks = itertools.count()  # every stage takes one second
    monkeypatch.setattr("l2r2.recognizer.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    recognizer = make_recognizer([SURE, UNSURE, SURE, SURE], [SURE] * 4, [BOX, BOX, None, BOX])
    escalated = recognizer.recognize([photo(i) for i in range(4)])[1].latency_ms
    third, half, quarter = pytest.approx(1000 / 3), 500.0, 250.0
    assert escalated == {
        "locate": quarter,
        "render FG": third,
        "classify FG": third,
        "render FULL": half,
        "classify FULL": half,
        "fuse": quarter,
    }


def test_latency_of_given_regions_has_no_locating():
    (answer,) = make_recognizer([SURE], [SURE], [BOX]).recognize([photo(0)], regions=[BOX])
    assert set(answer.latency_ms) == {"fuse"} | FG_KEYS


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5]), min_size=1, max_size=40), st.integers(1, 45))
def test_the_largest_are_those_of_a_stable_sort(values, count):
    row = np.array(values, np.float32)
    assert _largest(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


def test_the_fakes_know_their_photographs():
    recognizer = make_recognizer(np.eye(200), np.eye(200), [BOX] * 200, threshold=0.0)
    assert [a.answer.index for a in recognizer.recognize([photo(i) for i in range(200)])] == list(range(200))
    assert RAW.size_px == 32


def test_priors_of_strength_zero_leave_everything_as_it_is():
    silent = Priors(PRIORS.class_counts, PRIORS.tables, 1.0, 0.0)
    fg, full, regions = scripted(7)
    operator: Operator = Average()
    plain = make_recognizer(fg, full, regions, operator=operator).recognize([photo(i) for i in range(8)])
    quiet = make_recognizer(fg, full, regions, operator=operator, priors=silent)
    for one, other in zip(
        plain, quiet.recognize([photo(i) for i in range(8)], [{"habitat": "forest"}] * 8), strict=True
    ):
        assert one.candidates == other.candidates


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Middle:
    """Finds the middle ninth, whatever the scale it is shown."""

    key = "middle"
    side_px = 40

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []

    def locate(self, photos):
        self.shown += [(p.shape[1], p.shape[0]) for p in photos]
        found = []
        for p in photos:
            height, width = p.shape[:2]
            mask = np.zeros((height, width), bool)
            mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = True
            found.append(Region((width / 3, height / 3, 2 * width / 3, 2 * height / 3), 0.9, mask))
        return found


@pytest.mark.parametrize("views", [(View.FG_C, View.FULL), (View.FG_M, View.FULL)])
def test_encoded_photographs_are_answered_as_their_pixels(views):
    """Decoded coarsely where that is enough; regions are told in pixels of the original."""
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((960, 720), 3))
    recognizer = Recognizer(
        class_names=("a", "b", "c"),
        localizer=Middle(),
        classifiers={stage: PixelClassifier(3, seed) for seed, stage in enumerate(Stage)},
        views=dict(zip(Stage, views, strict=True)),
        view_settings=RAW,
        policy=Policy({stage: Temperature(np.ones(1)) for stage in Stage}, MaxScaledConfidence(), 1.0),
        priors=count_priors(np.arange(3), {}, 3),
    )
    data = jpeg(smooth)
    (coarse,) = recognizer.recognize([Photograph(data)])
    (whole,) = recognizer.recognize([decode(data)])
    assert recognizer.localizer.shown == [(120, 90), (960, 720)]
    assert coarse.size_px == whole.size_px == (960, 720)
    np.testing.assert_allclose(coarse.region.box_xyxy_px, whole.region.box_xyxy_px, atol=8)
    assert [c.index for c in coarse.candidates] == [c.index for c in whole.candidates]
    for one, other in zip(coarse.candidates, whole.candidates, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=0.03)
    assert next(iter(coarse.latency_ms)) == "decode"
    assert "decode" not in whole.latency_ms


def test_a_small_foreground_gets_the_pixels_that_the_original_has():
    class Corner(Middle):
        def locate(self, photos):
            super().locate(photos)
            return [Region((0, 0, p.shape[1] / 12, p.shape[0] / 12), 0.9) for p in photos]

    seen = []

    class Looking(PixelClassifier):
        def logits(self, images):
            seen.append(images)
            return super().logits(images)

    fine = np.zeros((768, 768, 3), np.uint8)
    fine[:64:2] = 255  # stripes that any coarser scale would turn grey
    recognizer = Recognizer(
        class_names=("a", "b"),
        localizer=Corner(),
        classifiers={Stage.FG: Looking(2), Stage.FULL: PixelClassifier(2)},
        views={Stage.FG: View.FG_C, Stage.FULL: View.FULL},
        view_settings=ViewSettings(size_px=64, mean=(0.0,) * 3, std=(1.0,) * 3, margin=0.0),
        policy=Policy({stage: Temperature(np.ones(1)) for stage in Stage}, MaxScaledConfidence(), 0.0),
        priors=count_priors(np.arange(2), {}, 2),
    )
    recognizer.recognize([Photograph(jpeg(fine))])
    assert seen[0][0, :, ::2].mean() > 0.8
    assert seen[0][0, :, 1::2].mean() < 0.2


class Purse:
    """A budget that lasts for some steps, and for FULL or not."""

    def __init__(self, steps: int = 99, full: bool = True) -> None:
        self.steps, self.full, self.asked = steps, full, 0

    def require(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise DeadlinePassed("too late")

    def affords(self, stage: Stage) -> bool:
        self.asked += 1
        assert stage is Stage.FULL
        return self.full


def test_without_time_for_full_the_answer_is_fgs_and_marked():
    recognizer = make_recognizer([SURE, UNSURE, UNSURE], [[0, 9, 0]] * 3, [BOX, BOX, None])
    before = recognizer.recognize([photo(i) for i in range(3)])
    assert not any(prediction.degraded for prediction in before)
    (sure, unsure, missing) = recognizer.recognize([photo(i) for i in range(3)], budget=Purse(full=False))
    assert (sure.degraded, unsure.degraded, missing.degraded) == (False, True, False)
    assert unsure.stages == (Stage.FG,)
    assert unsure.answer.index == 0
    assert unsure.answer.probability == pytest.approx(np.exp(0.4) / (np.exp(0.4) + 2), rel=1e-4)
    assert missing.stages == (Stage.FULL,)  # there is nothing else to answer with
    assert_same(sure, before[0])


def test_fg_only_is_as_without_time():
    recognizer = make_recognizer([SURE, UNSURE], [[0, 9, 0]] * 2, [BOX, BOX])
    purse = Purse()
    one, other = recognizer.recognize([photo(0), photo(1)], fg_only=True, budget=purse)
    assert (one.degraded, other.degraded) == (False, True)
    assert seen(recognizer, Stage.FULL) == []
    assert purse.asked == 0


def test_the_budget_is_asked_only_where_full_is_wanted():
    purse = Purse()
    make_recognizer([SURE], [[0, 9, 0]], [BOX]).recognize([photo(0)], budget=purse)
    assert purse.asked == 0


@pytest.mark.parametrize(
    ("steps", "located", "fg", "full"), [(0, 0, 0, 0), (1, 0, 0, 0), (2, 1, 0, 0), (3, 1, 1, 0), (4, 1, 1, 1)]
)
def test_nothing_is_begun_that_nobody_waits_for(steps, located, fg, full):
    """Before decoding, locating, FG and FULL."""
    recognizer = make_recognizer([UNSURE], [[0, 9, 0]], [BOX])
    if steps < 4:
        with pytest.raises(DeadlinePassed):
            recognizer.recognize([photo(0)], budget=Purse(steps))
    else:
        recognizer.recognize([photo(0)], budget=Purse(steps))
    counts = len(recognizer.localizer.seen), len(seen(recognizer, Stage.FG)), len(seen(recognizer, Stage.FULL))
    assert counts == (located, fg, full)


class TwoThings(TableLocalizer):
    """Finds `BOX`, surely, and a smaller box, less so."""

    small = Region((0.0, 0.0, 6.0, 6.0), 0.25)

    def instances(self, photos, min_score=None, *, masks=False):
        return [[region for region in (BOX, self.small) if region.score >= (min_score or 0.2)] for _ in photos]

    def decide(self, photo, instances):
        return instances[0] if instances else None


def test_detections_are_instances_one_by_one():
    recognizer = replace(make_recognizer([SURE], [[0, 9, 0]], [BOX]), localizer=TwoThings([BOX]))
    assert recognizer.detect(photo(0)) == [BOX]
    assert recognizer.detect(photo(0), 5) == [BOX, TwoThings.small]
    assert recognizer.detect(photo(0), 5, 0.5) == [BOX]
    assert recognizer.detect(photo(0), 5, 0.9) == [None]
    with pytest.raises(InputError, match="0 detections; expected at least 1"):
        recognizer.detect(photo(0), 0)


def test_detections_are_told_in_pixels_of_the_original():
    recognizer = replace(make_recognizer([SURE], [[0, 9, 0]], [BOX]), localizer=TwoThings([BOX]))
    recognizer.localizer.side_px = 16  # so a large JPEG is decoded at a smaller scale
    file = io.BytesIO()
    Image.fromarray(photo(0, 320, 480)).save(file, "JPEG")
    (region,) = recognizer.detect(Photograph(file.getvalue()))
    scale = region.box_xyxy_px[0] / BOX.box_xyxy_px[0]
    assert scale > 1
    assert region.box_xyxy_px == tuple(side * scale for side in BOX.box_xyxy_px)


def test_a_localizer_that_tells_no_instances_is_named():
    with pytest.raises(InputError, match="localizer table does not tell instances apart"):
        make_recognizer([SURE], [[0, 9, 0]], [BOX]).detect(photo(0), 2)
