"""The bound holds, checked by simulation from populations whose risk is known, and it is not vacuous."""

import numpy as np
import pytest
from scipy.stats import binom

from l2r2.errors import InputError
from l2r2.risk import certify, p_value, upper_bound

THRESHOLDS = np.round(np.linspace(0, 1, 51), 2)
EPSILON, DELTA = 0.05, 0.1


def population(rng: np.random.Generator, m: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph is lost below a threshold of its own; P(lost at t) = 0.3 (1 - t)². Groups share most of it."""
    fate = np.repeat(rng.random(m), size)
    own = np.where(rng.random(m * size) < 0.7, fate, rng.random(m * size))
    losses = own < 0.3 * (1 - THRESHOLDS[:, None]) ** 2
    return losses, np.repeat(np.arange(m), size)


def true_risk(threshold: float) -> float:
    return 0.3 * (1 - threshold) ** 2


def violations(choose, m: int, size: int, draws: int = 300) -> tuple[float, float]:
    """How often the true risk exceeds epsilon, and the median threshold."""
    rng = np.random.default_rng(0)
    chosen = [choose(*population(rng, m, size)) for _ in range(draws)]
    return float(np.mean([true_risk(t) > EPSILON + 1e-12 for t in chosen])), float(np.median(chosen))


@pytest.mark.parametrize(("m", "size"), [(60, 1), (200, 1), (200, 4)])
def test_the_bound_holds(m, size):
    def choose(losses: np.ndarray, groups: np.ndarray) -> float:
        return certify(THRESHOLDS, losses, groups, EPSILON, DELTA).threshold

    broken, median = violations(choose, m, size)
    assert broken <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 300)
    assert median < 1.0


def test_the_check_can_fail_an_empirical_choice_breaks_the_bound():
    def choose(losses: np.ndarray, groups: np.ndarray) -> float:
        return float(THRESHOLDS[np.flatnonzero(losses.mean(axis=1) <= EPSILON)[0]])

    broken, _ = violations(choose, 200, 1)
    assert broken > 0.3


def test_treating_photographs_of_a_group_as_independent_breaks_the_bound():
    def choose(losses: np.ndarray, groups: np.ndarray) -> float:
        return certify(THRESHOLDS, losses, np.arange(len(groups)), EPSILON, DELTA).threshold

    broken, _ = violations(choose, 60, 12)
    assert broken > DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 300)


@pytest.mark.parametrize(("wrong", "m"), [(0, 30), (1, 60), (7, 200)])
def test_zeros_and_ones_have_the_exact_binomial_tail(wrong, m):
    losses = np.zeros(m)
    losses[:wrong] = 1
    assert p_value(losses, 0.08) == pytest.approx(binom.cdf(wrong, m, 0.08))


def test_p_values_at_the_border_are_not_too_small_too_often():
    rng = np.random.default_rng(1)
    for make in (
        lambda: (rng.random(80) < EPSILON).astype(float),
        lambda: (rng.random((80, 5)) < EPSILON).mean(axis=1),
        lambda: np.where(rng.random(80) < 0.1, rng.random(80), 0.0),  # expectation 0.05
    ):
        values = np.array([p_value(make(), EPSILON) for _ in range(1500)])
        for level in (0.02, 0.1, 0.3):
            assert (values <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 1500)


def test_fractions_are_never_judged_milder_than_hoeffding_and_agree_with_mapie():
    losses = np.array([0.5] * 4 + [0.25] * 6 + [0.0] * 190)
    mean, m = losses.mean(), len(losses)
    hoeffding = np.exp(-2 * m * (0.1 - mean) ** 2)
    assert p_value(losses, 0.1) < hoeffding
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    theirs = float(np.ravel(compute_hoeffding_bentkus_p_value(np.array([mean]), m, 0.1))[0])
    assert p_value(losses, 0.1) == pytest.approx(theirs, rel=1e-6)


def test_the_upper_bound_is_where_the_p_value_crosses_delta():
    losses = np.zeros(50)
    bound = upper_bound(losses, 0.1)
    assert bound == pytest.approx(1 - 0.1 ** (1 / 50), abs=1e-5)  # (1 - bound)^50 = 0.1
    losses[:3] = 1
    assert p_value(losses, upper_bound(losses, 0.1) + 1e-3) < 0.1 < p_value(losses, upper_bound(losses, 0.1) - 1e-3)


def test_nothing_certified_is_always_both():
    losses = np.zeros((3, 10), dtype=bool)
    found = certify(np.array([0.0, 0.5, 1.0]), losses, np.arange(10), 0.01, 0.1)  # 0.99^10 = 0.90
    assert (found.threshold, found.loss, found.groups) == (1.0, 0.0, 10)
    assert found.bound > 0.01


def test_a_loss_free_gate_is_certified_all_the_way_down():
    losses = np.zeros((3, 100), dtype=bool)
    found = certify(np.array([0.0, 0.5, 1.0]), losses, np.arange(100), 0.05, 0.1)
    assert found.threshold == 0.0
    assert found.bound <= 0.05


@pytest.mark.parametrize(
    ("thresholds", "epsilon", "delta"), [([0.5, 0.5], 0.1, 0.1), ([0.0, 1.0], 0.0, 0.1), ([0.0, 1.0], 0.1, 1.0)]
)
def test_bad_arguments(thresholds, epsilon, delta):
    with pytest.raises(InputError, match="expected"):
        certify(np.array(thresholds), np.zeros((2, 5), dtype=bool), np.arange(5), epsilon, delta)


def test_no_photographs():
    with pytest.raises(InputError, match="expected ascending ones and photographs"):
        certify(np.array([0.0, 1.0]), np.zeros((2, 0), dtype=bool), np.zeros(0), 0.1, 0.1)
