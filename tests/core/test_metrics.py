import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.errors import InputError
from l2r2.logspace import log_normalize
from l2r2.metrics import bootstrap, brier, clustered_se, ece, macro_accuracy, nll, reliability

# Four photographs of two classes with P(class 0) = 0.9, 0.6, 0.6, 0.2.
LOG_PROBS = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8]]))
LABELS = np.array([0, 0, 1, 1])


def test_macro_accuracy_weighs_classes_alike():
    # class 0: 3 of 4, class 1: 0 of 1 → (0.75 + 0) / 2
    correct = np.array([True, True, True, False, False])
    assert macro_accuracy(correct, np.array([0, 0, 0, 0, 1])) == 0.375


def test_macro_accuracy_drops_absent_classes():
    # class 1 of 0, 1, 2 has no photograph: (1 + 0.5) / 2, not / 3
    assert macro_accuracy(np.array([True, True, False]), np.array([0, 2, 2])) == 0.75


def test_nll_golden():
    # -(ln 0.9 + ln 0.6 + ln 0.4 + ln 0.8) / 4
    assert nll(LOG_PROBS, LABELS) == pytest.approx(-np.log(0.9 * 0.6 * 0.4 * 0.8) / 4)


def test_brier_golden():
    # 2 (0.1² + 0.4² + 0.6² + 0.2²) / 4 = 2 · 0.57 / 4
    assert brier(LOG_PROBS, LABELS) == pytest.approx(0.285)


def test_brier_of_certain_answers():
    certain = np.log(np.array([[1.0, 1e-30], [1.0, 1e-30]]))
    assert brier(certain, np.array([0, 1])) == pytest.approx(1.0)  # 0 when right, 2 when wrong


def test_brier_leaves_its_argument_alone():
    before = LOG_PROBS.copy()
    brier(LOG_PROBS, LABELS)
    np.testing.assert_array_equal(LOG_PROBS, before)


def test_ece_golden():
    # Confidences 0.9, 0.62, 0.62, 0.82, right: yes, yes, no, yes; five bins of 0.2.
    # [0.6, 0.8): |0.62 - 0.5| · 2; [0.8, 1]: |0.86 - 1| · 2; their sum 0.52 over four photographs.
    probs = np.array([[0.9, 0.1], [0.62, 0.38], [0.62, 0.38], [0.18, 0.82]])
    assert ece(np.log(probs), LABELS, bins=5) == pytest.approx(0.13)


def test_reliability_counts_every_photograph_once():
    curve = reliability(LOG_PROBS, LABELS, bins=10)
    assert curve.count.sum() == 4
    assert curve.confidence[curve.count == 0].tolist() == curve.accuracy[curve.count == 0].tolist()


def test_confidence_one_falls_into_the_last_bin():
    assert reliability(np.array([[0.0, -np.inf]]), np.array([0]), bins=4).count.tolist() == [0, 0, 0, 1]


@given(st.integers(0, 1000))
def test_ece_lies_between_zero_and_one(seed):
    rng = np.random.default_rng(seed)
    log_probs = log_normalize(rng.normal(size=(20, 4)) * 5)
    assert 0 <= ece(log_probs, rng.integers(0, 4, 20)) <= 1


def test_bootstrap_contains_the_value():
    values = np.random.default_rng(0).random(200)
    interval = bootstrap(values, np.arange(200))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low < interval.value < interval.high
    assert (interval.n, interval.groups) == (200, 200)


def test_bootstrap_width_is_that_of_the_normal_interval():
    values = np.random.default_rng(1).random(500)
    interval = bootstrap(values, np.arange(500), draws=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.06)


def test_homogeneous_groups_make_the_interval_wider():
    values = np.repeat(np.random.default_rng(2).random(30), 10)
    by_group = bootstrap(values, np.repeat(np.arange(30), 10))
    by_photo = bootstrap(values, np.arange(300))
    # Ten copies of 30 values know as much as 30 values: √10 times wider.
    ratio = (by_group.high - by_group.low) / (by_photo.high - by_photo.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


def test_bootstrap_repeats_with_its_seed():
    values, groups = np.random.default_rng(3).random(50), np.arange(50) // 5
    assert bootstrap(values, groups, seed=7) == bootstrap(values, groups, seed=7)
    assert bootstrap(values, groups, seed=7) != bootstrap(values, groups, seed=8)


def test_bootstrap_takes_any_group_names():
    values = np.array([True, False, True, True])
    assert bootstrap(values, np.array(["a", "a", "b", "b"])).groups == 2


def test_bootstrap_of_nothing():
    with pytest.raises(InputError, match=r"^no values to take a mean of; the split is empty$"):
        bootstrap(np.empty(0), np.empty(0))


def test_clustered_se_of_single_photographs_is_the_usual_one():
    # s = √(1/3), s / √4 = 0.288675
    assert clustered_se(np.array([1.0, 0.0, 1.0, 0.0]), np.arange(4)) == pytest.approx(0.2886751)


def test_clustered_se_golden():
    # Residual sums per group are 1 and -1: √(2 / (2 - 1) · 2) / 4 = 0.5
    assert clustered_se(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)


def test_clustered_se_of_one_group_is_unknown():
    assert clustered_se(np.array([1.0, 0.0]), np.array([5, 5])) == np.inf
