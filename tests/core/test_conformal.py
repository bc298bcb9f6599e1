"""Prediction sets cover what they promise, for new groups, and no more than needed."""

import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.conformal import PredictionSets, fit_sets, set_figures
from l2r2.errors import InputError
from l2r2.logspace import log_normalize


def drawn(rng: np.random.Generator, n: int, k: int = 5, strength: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, k, n)
    return log_normalize(strength * np.eye(k)[labels] + rng.normal(size=(n, k))), labels


def test_groups_of_one_give_the_order_statistic_of_split_conformal_prediction():
    belief, labels = drawn(np.random.default_rng(0), 99)
    scores = np.sort(1 - np.exp(belief[np.arange(99), labels]))
    sets = fit_sets(belief, labels, np.arange(99), 0.9)
    # The ceil((n + 1) coverage)-th smallest score: the 90th of 99.
    assert sets.threshold == pytest.approx(1 - scores[89], abs=1e-9)


@pytest.mark.parametrize(("n", "coverage"), [(9, 0.9), (10, 0.9), (99, 0.8), (100, 0.95), (57, 0.33)])
def test_the_order_statistic_at_any_number(n, coverage):
    belief, labels = drawn(np.random.default_rng(n), n)
    truth = belief[np.arange(n), labels]
    rank = int(np.ceil(round((n + 1) * coverage, 9)))
    covered = fit_sets(belief, labels, np.arange(n), coverage)
    assert (truth >= np.log(covered.threshold)).sum() == rank


def test_sets_equal_those_of_mapie():
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Fixed(ClassifierMixin, BaseEstimator):
        """Its features are its probabilities."""

        def fit(self, x, y):
            self.classes_ = np.arange(x.shape[1])
            return self

        def predict(self, x):
            return x.argmax(axis=1)

        def predict_proba(self, x):
            return x

    rng = np.random.default_rng(1)
    belief, labels = drawn(rng, 200)
    new, _ = drawn(rng, 100)
    fixed = Fixed().fit(np.exp(belief), labels)
    top = np.eye(5, dtype=bool)[new.argmax(axis=1)]
    for coverage in (0.6, 0.85, 0.97):
        theirs = mapie.SplitConformalClassifier(fixed, confidence_level=coverage, conformity_score="lac", prefit=True)
        _, sets = theirs.conformalize(np.exp(belief), labels).predict_set(np.exp(new))
        ours = fit_sets(belief, labels, np.arange(200), coverage).members(new)
        np.testing.assert_array_equal(ours, sets[:, :, 0] | top)


def test_the_weight_of_a_group_is_shared_by_its_photographs():
    # Two groups: four photographs at 0.9, one at 0.2. Each group weighs 1/3, so coverage 0.6 needs both groups.
    probabilities = np.array([0.9, 0.9, 0.9, 0.9, 0.2])
    belief = np.log(np.stack([probabilities, 1 - probabilities], axis=1))
    groups = np.array(["a", "a", "a", "a", "b"])
    labels = np.zeros(5, dtype=int)
    assert fit_sets(belief, labels, groups, 0.3).threshold == pytest.approx(0.9)
    assert fit_sets(belief, labels, groups, 0.6).threshold == pytest.approx(0.2)


def test_too_few_groups_for_the_coverage_put_every_class_in():
    belief, labels = drawn(np.random.default_rng(2), 30)
    sets = fit_sets(belief, labels, np.repeat(np.arange(6), 5), 0.9)
    assert sets.threshold == 0
    assert sets.members(belief).all()


def clustered(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of 1 or 12 photographs; the large ones are easy and alike, the small ones hard."""
    sizes = np.where(rng.random(m) < 0.5, 12, 1)
    groups = np.repeat(np.arange(m), sizes)
    easy = np.repeat(np.where(sizes > 1, 5.0, 0.6) + rng.normal(scale=0.5, size=m), sizes)
    labels = rng.integers(0, 4, len(groups))
    return log_normalize(easy[:, None] * np.eye(4)[labels] + rng.normal(size=(len(groups), 4))), labels, groups


def simulated(fit, draws: int = 400, m: int = 39) -> tuple[float, float]:
    """Mean over draws of the share of a new group's photographs that are covered, and its standard error."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(draws):
        belief, labels, groups = clustered(rng, m)
        sets = fit(belief, labels, groups)
        new, truth, place = clustered(rng, 40)
        covered = sets.members(new)[np.arange(len(truth)), truth]
        shares.append(np.mean(np.bincount(place, weights=covered) / np.bincount(place)))
    return float(np.mean(shares)), float(np.std(shares) / np.sqrt(draws))


def test_new_groups_are_covered_as_promised_and_hardly_more():
    coverage, error = simulated(lambda *given: fit_sets(*given, 0.8))
    assert error < 0.006
    # 1 / (m + 1) more than promised where groups are of one; in general twice that is the limit.
    assert 0.8 - 3 * error <= coverage <= 0.8 + 1 / 40 + 3 * error


def test_counting_photographs_instead_of_groups_would_not_cover():
    naive, error = simulated(lambda belief, labels, groups: fit_sets(belief, labels, np.arange(len(groups)), 0.8))
    assert naive < 0.8 - 3 * error


@given(seed=st.integers(0, 200), low=st.floats(0.1, 0.9), more=st.floats(0.0, 0.09))
def test_more_coverage_never_takes_a_class_out(seed, low, more):
    belief, labels = drawn(np.random.default_rng(seed), 40)
    groups = np.arange(40) // 2
    smaller, larger = fit_sets(belief, labels, groups, low), fit_sets(belief, labels, groups, low + more)
    assert (smaller.members(belief) <= larger.members(belief)).all()


def test_every_set_holds_the_most_probable_class():
    belief = log_normalize(np.zeros((3, 4)) + np.array([[0.1, 0, 0, 0], [0, 0.1, 0, 0], [0, 0, 0, 0.1]]))
    assert PredictionSets(0.99, 0.9).members(belief).argmax(axis=1).tolist() == [0, 1, 3]
    assert PredictionSets(0.99, 0.9).members(belief).sum() == 3


def test_classes_tied_with_the_threshold_are_in():
    # Three of four photographs give their class 0.3, as they do another; the fourth 0.9.
    probabilities = np.array([[0.3, 0.3, 0.4], [0.3, 0.4, 0.3], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    sets = fit_sets(np.log(probabilities), np.array([0, 0, 1, 0]), np.arange(4), 0.4)
    assert sets.threshold == pytest.approx(0.3)
    assert sets.members(np.log(probabilities)).sum(axis=1).tolist() == [3, 3, 3, 1]


def test_one_class_is_always_the_set():
    sets = fit_sets(np.zeros((20, 1)), np.zeros(20, dtype=int), np.arange(20), 0.9)
    assert sets.members(np.zeros((3, 1))).tolist() == [[True]] * 3


def test_no_rows_have_no_sets():
    assert PredictionSets(0.5, 0.9).members(np.zeros((0, 4))).shape == (0, 4)


def test_one_row_of_many_classes():
    # Uniform but for three: p = 0.2, 0.1, 0.05, the other 9,997 share 0.65.
    belief = np.log(np.array([[0.2, 0.1, 0.05] + [0.65 / 9997] * 9997]))
    assert np.flatnonzero(PredictionSets(0.06, 0.9).members(belief)).tolist() == [0, 1]
    assert min(timeit.repeat(lambda: PredictionSets(0.06, 0.9).members(belief), number=10)) / 10 < 1e-3  # seconds


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 300.0, 3000.0])
def test_rounding_never_puts_out_the_photograph_that_sets_the_threshold(dtype, scale):
    # However overconfident: at 300 some thresholds are subnormal, at 3000 they are no double at all.
    for seed in range(200):
        rng = np.random.default_rng(seed)
        belief = log_normalize((scale * rng.normal(size=(29, 5))).astype(dtype))
        labels = rng.integers(0, 5, 29)
        covered = fit_sets(belief, labels, np.arange(29), 0.9).members(belief)[np.arange(29), labels]
        assert covered.sum() >= 27


def test_rounding_never_puts_out_the_class_that_sets_the_threshold():
    # Of 20,000 doubles up to 0.5 about six do not come back from logarithm to probability and back.
    for p in 0.5 * np.random.default_rng(6).random(20_000):
        belief = np.log(np.array([[p, 1 - p]]))
        assert fit_sets(belief, np.zeros(1, dtype=int), np.zeros(1), 0.4).members(belief)[0, 0]


def test_single_precision_covers_its_own_photographs():
    belief, labels = drawn(np.random.default_rng(4), 50)
    belief = belief.astype(np.float32)
    covered = fit_sets(belief, labels, np.arange(50), 0.5).members(belief)[np.arange(50), labels]
    assert covered.sum() >= 26


def test_figures():
    belief = np.log(np.array([[0.8, 0.2], [0.55, 0.45], [0.3, 0.7]]))
    found = set_figures(PredictionSets(0.4, 0.9), belief, np.array([0, 1, 0]), np.arange(3))
    assert (found["size"], found["singletons"]) == (pytest.approx(4 / 3), pytest.approx(2 / 3))
    assert found["coverage"].value == pytest.approx(2 / 3)
    assert found["coverage"].low <= 2 / 3 <= found["coverage"].high


def test_coverage_is_measured_as_it_is_promised_each_group_counting_the_same():
    # Three covered photographs of one group, one of another that is not: 1/2 of the groups, 3/4 of the photographs.
    belief = np.log(np.array([[0.8, 0.2]] * 3 + [[0.2, 0.8]]))
    coverage = set_figures(PredictionSets(0.5, 0.9), belief, np.zeros(4, dtype=int), np.array(["a", "a", "a", "b"]))
    assert (coverage["coverage"].value, coverage["coverage"].n, coverage["coverage"].groups) == (0.5, 4, 2)


def test_no_photographs():
    with pytest.raises(InputError, match="no photographs to fit prediction sets on"):
        fit_sets(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0), 0.9)


@pytest.mark.parametrize(("threshold", "coverage"), [(-0.1, 0.9), (1.1, 0.9), (0.5, 0.0), (0.5, 1.0)])
def test_ranges(threshold, coverage):
    with pytest.raises(InputError, match=r"expected \[0, 1\] and a share"):
        PredictionSets(threshold, coverage)


@pytest.mark.parametrize("coverage", [0.0, 1.0, 1.5, np.nan])
def test_coverage_out_of_range(coverage):
    belief, labels = drawn(np.random.default_rng(5), 20)
    with pytest.raises(InputError, match="a share between 0 and 1"):
        fit_sets(belief, labels, np.arange(20), coverage)


def test_figures_of_no_photographs():
    with pytest.raises(InputError, match="the split is empty"):
        set_figures(PredictionSets(0.5, 0.9), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
