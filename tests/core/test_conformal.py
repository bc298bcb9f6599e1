"""Prediction sets cover what they promise, for new groups, and no more than needed."""

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
    theirs = mapie.SplitConformalClassifier(fixed, confidence_level=0.85, conformity_score="lac", prefit=True)
    _, sets = theirs.conformalize(np.exp(belief), labels).predict_set(np.exp(new))
    ours = fit_sets(belief, labels, np.arange(200), 0.85).members(new)
    top = np.eye(5, dtype=bool)[new.argmax(axis=1)]
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


def simulated(fit, draws: int = 400, m: int = 39) -> float:
    """Mean over draws of the share of a new group's photographs that are covered."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(draws):
        belief, labels, groups = clustered(rng, m)
        sets = fit(belief, labels, groups)
        new, truth, place = clustered(rng, 40)
        covered = sets.members(new)[np.arange(len(truth)), truth]
        shares.append(np.mean(np.bincount(place, weights=covered) / np.bincount(place)))
    return float(np.mean(shares))


def test_new_groups_are_covered_as_promised_and_hardly_more():
    coverage = simulated(lambda *given: fit_sets(*given, 0.8))
    assert 0.8 - 0.01 <= coverage <= 0.8 + 1 / 40 + 0.012  # the upper bound, 1 / (m + 1) more, and chance


def test_counting_photographs_instead_of_groups_would_not_cover():
    naive = simulated(lambda belief, labels, groups: fit_sets(belief, labels, np.arange(len(groups)), 0.8))
    assert naive < 0.78


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


def test_no_photographs():
    with pytest.raises(InputError, match="no photographs to fit prediction sets on"):
        fit_sets(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0), 0.9)


@pytest.mark.parametrize(("threshold", "coverage"), [(-0.1, 0.9), (1.1, 0.9), (0.5, 0.0), (0.5, 1.0)])
def test_ranges(threshold, coverage):
    with pytest.raises(InputError, match=r"expected \[0, 1\] and a share"):
        PredictionSets(threshold, coverage)
