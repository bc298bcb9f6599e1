"""The bound holds, checked by simulation from populations whose risk is known, and it is not vacuous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from l2r2.errors import InputError
from l2r2.risk import certify, p_value, upper_bound

THRESHOLDS = np.round(np.linspace(0, 1, 51), 2)
EPSILON, DELTA, DRAWS = 0.05, 0.1, 300
TOO_OFTEN = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / DRAWS)
BREAK_EVEN = 1 - np.sqrt(EPSILON / 0.3)
"""Where the true risk is epsilon: 0.592."""


def true_risk(threshold: float) -> float:
    return 0.3 * (1 - threshold) ** 2


def population(rng: np.random.Generator, m: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A photograph is lost below a threshold of its own; groups share most of it. The mean of groups is `true_risk`.

    With two sizes, small groups lose twice as much as large ones: 0.4 and 0.2 at threshold 0, so photographs do not
    have the groups' risk.
    """
    size = rng.choice(sizes, m)
    groups = np.repeat(np.arange(m), size)
    own = np.where(rng.random(len(groups)) < 0.7, rng.random(m)[groups], rng.random(len(groups)))
    top = np.full(m, 0.3) if len(sizes) == 1 else np.where(size == min(sizes), 0.4, 0.2)
    return own < top[groups] * (1 - THRESHOLDS[:, None]) ** 2, groups


def certified(losses: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    found = certify(THRESHOLDS, losses, groups, EPSILON, DELTA)
    return found.threshold, found.bound


def drawn(choose, m: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Threshold and bound of each draw of a calibration set."""
    rng = np.random.default_rng(0)
    return np.array([choose(*population(rng, m, sizes)) for _ in range(DRAWS)]).T


def violations(thresholds: np.ndarray) -> float:
    return float(np.mean(true_risk(thresholds) > EPSILON + 1e-12))


@pytest.mark.parametrize(
    ("m", "sizes", "median"),
    [(60, (1,), 0.88), (60, (1, 8), 0.88), (200, (1,), 0.78), (200, (4,), 0.78), (200, (1, 8), 0.78)],
)
def test_the_bound_holds_and_is_not_vacuous(m, sizes, median):
    thresholds, bounds = drawn(certified, m, sizes)
    assert violations(thresholds) <= TOO_OFTEN
    assert np.mean(true_risk(thresholds) > bounds) <= TOO_OFTEN
    assert BREAK_EVEN < np.median(thresholds) < median


def test_the_check_can_fail_an_empirical_choice_breaks_the_bound():
    def choose(losses: np.ndarray, groups: np.ndarray) -> float:
        return float(THRESHOLDS[np.flatnonzero(losses.mean(axis=1) <= EPSILON)[0]])

    assert violations(drawn(choose, 200, (1,))) > 0.3  # about half


@pytest.mark.parametrize(("m", "sizes"), [(60, (12,)), (60, (1, 12))])
def test_treating_photographs_of_a_group_as_independent_breaks_the_bound(m, sizes):
    def choose(losses: np.ndarray, groups: np.ndarray) -> float:
        return certify(THRESHOLDS, losses, np.arange(len(groups)), EPSILON, DELTA).threshold

    assert violations(drawn(choose, m, sizes)) > TOO_OFTEN


def test_more_is_certified_than_with_plain_hoeffding():
    rng = np.random.default_rng(3)
    ours, plain = [], []
    for _ in range(100):
        losses, groups = population(rng, 200, (4,))
        ours.append(certify(THRESHOLDS, losses, groups, 0.1, DELTA).threshold)
        bounds = losses.mean(axis=1) + np.sqrt(np.log(1 / DELTA) / (2 * 200))  # groups are of one size
        plain.append(THRESHOLDS[np.flatnonzero(bounds <= 0.1)[0]])
    assert np.all(np.array(ours) <= plain)
    assert np.median(ours) < np.median(plain) - 0.1


@pytest.mark.parametrize(("wrong", "m"), [(0, 30), (1, 60), (8, 200)])
def test_bool_losses_have_the_exact_binomial_tail(wrong, m):
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    losses = np.arange(m) < wrong
    assert p_value(losses, 0.08) == pytest.approx(binom.cdf(wrong, m, 0.08))
    # MAPIE takes the mean and rounds m times it up, so only counts that come back exactly can be compared.
    assert m * (wrong / m) == wrong
    theirs = compute_hoeffding_bentkus_p_value(np.array([wrong / m]), m, 0.08, binary=True)
    assert p_value(losses, 0.08) == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("epsilon", [0.05, 0.15])
def test_p_values_are_valid_exactly(fraction, epsilon):
    """Every outcome of 30 losses of 0, `fraction` or 1 with mean epsilon, and its probability: no chance involved."""
    m = 30
    counts = np.array([(a, b, m - a - b) for a in range(m + 1) for b in range(m + 1 - a)])
    values = np.array([p_value(np.repeat([1.0, fraction, 0.0], row), epsilon) for row in counts])
    for share in (0.0, 0.1, 0.5, 0.9):  # of the mean that is in fractions
        parts = min(share * epsilon / fraction, 1.0 - epsilon)
        ones = epsilon - parts * fraction
        chances = multinomial.pmf(counts, m, [ones, parts, 1 - ones - parts])
        assert chances.sum() == pytest.approx(1)
        for level in (0.01, 0.05, 0.1, 0.2):
            assert chances[values <= level].sum() <= level + 1e-12


def test_p_values_at_the_border_are_not_too_small_too_often():
    rng = np.random.default_rng(1)
    for make in (
        lambda: rng.random(80) < EPSILON,
        lambda: (rng.random(80) < EPSILON).astype(float),
        lambda: (rng.random((80, 5)) < EPSILON).mean(axis=1),
        lambda: np.where(rng.random(80) < 0.1, rng.random(80), 0.0),  # expectation 0.05
    ):
        values = np.array([p_value(make(), EPSILON) for _ in range(1000)])
        for level in (0.02, 0.1, 0.3):
            assert (values <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 1000)


def fractions(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(50) < 0.2, rng.choice([0.1, 0.25, 0.5, 1.0], 50), 0.0)


@given(st.integers(0, 300), st.floats(0.05, 0.6))
def test_whatever_hoeffding_refutes_is_refuted(seed, epsilon):
    losses = fractions(seed)
    c, m = losses.mean(), len(losses)
    if c >= epsilon:
        assert p_value(losses, epsilon) == pytest.approx(1.0)
    else:
        entropy = (c * np.log(c / epsilon) if c else 0.0) + (1 - c) * np.log((1 - c) / (1 - epsilon))
        assert p_value(losses, epsilon) <= np.exp(-m * entropy) * (1 + 1e-6)


@given(st.integers(0, 300), st.floats(0.05, 0.6))
def test_the_p_value_is_the_smallest_level_whose_bet_pays(seed, epsilon):
    losses = fractions(seed)
    c = np.linspace(1e-6, 1 - 1e-6, 4000) * epsilon
    levels = np.exp(-len(losses) * (c * np.log(c / epsilon) + (1 - c) * np.log((1 - c) / (1 - epsilon))))
    stakes = (epsilon - c) / (epsilon * (1 - epsilon))
    pays = np.prod(1 + stakes[:, None] * (epsilon - losses), axis=1) >= 1 / levels
    assert p_value(losses, epsilon) == pytest.approx(levels[pays].min() if pays.any() else 1.0, rel=0.05)


@given(st.integers(0, 300), st.floats(0.05, 0.5), st.floats(0, 0.4), st.floats(0, 0.5))
def test_order_is_ignored_and_more_loss_or_less_tolerance_never_helps(seed, epsilon, more, worse):
    losses = fractions(seed)
    p = p_value(losses, epsilon)
    assert p_value(np.random.default_rng(seed).permutation(losses), epsilon) == pytest.approx(p, rel=1e-9)
    assert p_value(losses, epsilon + more) <= p * (1 + 1e-9)
    losses[seed % 50] = min(1.0, losses[seed % 50] + worse)
    assert p_value(losses, epsilon) >= p * (1 - 1e-9)


@pytest.mark.parametrize(("m", "epsilon"), [(30, 0.1), (60, 0.1), (200, 0.02)])
def test_more_power_than_hoeffding_bentkus_where_groups_are_mixed(m, epsilon):
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    rng = np.random.default_rng(2)
    samples = (rng.random((400, m, 4)) < 0.1 * epsilon).mean(axis=2)
    ours = np.mean([p_value(losses, epsilon) <= DELTA for losses in samples])
    theirs = np.mean(compute_hoeffding_bentkus_p_value(samples.mean(axis=1), m, epsilon) <= DELTA)
    assert ours > theirs + (0.1 if theirs < 0.9 else 0.0)


def test_the_upper_bound_is_where_the_p_value_crosses_delta():
    none = np.zeros(50, dtype=bool)
    assert upper_bound(none, 0.1) == pytest.approx(1 - 0.1 ** (1 / 50), abs=1e-5)  # (1 - bound)^50 = 0.1
    # Clopper & Pearson 1934: the upper limit for 3 of 50 is a quantile of Beta(4, 47).
    from scipy.stats import beta

    assert upper_bound(np.arange(50) < 3, 0.1) == pytest.approx(beta.ppf(0.9, 4, 47), abs=1e-5)
    bound = upper_bound(fractions(0), 0.1)
    assert p_value(fractions(0), bound + 1e-3) < 0.1 < p_value(fractions(0), bound - 1e-3)
    assert upper_bound(np.ones(5), 0.1) == 1.0


def test_the_lowest_threshold_before_the_first_failure():
    # 0.9^22 = 0.098 ≤ 0.1, and one of 22 lost has 0.098 + 22 · 0.1 · 0.9^21 = 0.34. 0.25 comes after a failure.
    losses = np.zeros((5, 22), dtype=bool)
    losses[:2, 0] = True
    losses[0, 0] = False
    found = certify(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), losses, np.arange(22), 0.1, 0.1)
    assert (found.threshold, found.loss, found.groups) == (0.5, 0.0, 22)
    assert found.p_value == pytest.approx(0.9**22)
    assert found.bound == pytest.approx(1 - 0.1 ** (1 / 22), abs=1e-5)


def test_a_group_counts_once_however_many_photographs_it_has():
    # Group "a" loses 1 of 10 photographs, the other 39 none: (1 / 10) / 40, not 1 / 49.
    losses = np.zeros((2, 49), dtype=bool)
    losses[0, 0] = True
    found = certify(np.array([0.5, 1.0]), losses, np.array(["a"] * 10 + [f"g{i}" for i in range(39)]), 0.1, 0.1)
    assert (found.threshold, found.groups) == (0.5, 40)
    assert found.loss == pytest.approx(0.0025)


def test_groups_of_one_photograph_are_judged_by_the_exact_tail():
    # One of 60 lost: 0.9^60 + 60 · 0.1 · 0.9^59 = 0.0138; a bet on it would give 0.032.
    losses = np.zeros((2, 60), dtype=bool)
    losses[0, 7] = True
    alone = certify(np.array([0.5, 1.0]), losses, np.arange(60), 0.1, 0.1)
    assert alone.p_value == pytest.approx(0.9**60 + 60 * 0.1 * 0.9**59)
    assert alone.p_value < p_value(losses[0].astype(float), 0.1)


def test_nothing_certified_is_always_both_which_loses_nothing():
    losses = np.zeros((3, 10), dtype=bool)
    found = certify(np.array([0.0, 0.5, 1.0]), losses, np.arange(10), 0.01, 0.1)  # 0.99^10 = 0.90
    assert (found.threshold, found.p_value, found.loss, found.bound, found.groups) == (1.0, 0.0, 0.0, 0.0, 10)


@pytest.mark.parametrize(("m", "threshold"), [(113, 1.0), (114, 0.0)])
def test_how_many_groups_it_takes(m, threshold):
    losses = np.zeros((2, m), dtype=bool)
    assert certify(np.array([0.0, 1.0]), losses, np.arange(m), 0.02, 0.1).threshold == threshold


def test_a_loss_free_gate_is_certified_all_the_way_down():
    found = certify(np.array([0.0, 0.5, 1.0]), np.zeros((3, 100), dtype=bool), np.arange(100), 0.05, 0.1)
    assert found.threshold == 0.0
    assert found.bound <= 0.05


@pytest.mark.parametrize(
    ("thresholds", "epsilon", "delta"),
    [([0.5, 0.5], 0.1, 0.1), ([0.0, 1.0], 0.0, 0.1), ([0.0, 1.0], 0.1, 1.0), ([0.0, 1.0], 1.0, 0.1)],
)
def test_bad_arguments(thresholds, epsilon, delta):
    with pytest.raises(InputError, match="expected"):
        certify(np.array(thresholds), np.zeros((2, 5), dtype=bool), np.arange(5), epsilon, delta)


def test_no_photographs():
    with pytest.raises(InputError, match="expected ascending ones and photographs"):
        certify(np.array([0.0, 1.0]), np.zeros((2, 0), dtype=bool), np.zeros(0), 0.1, 0.1)


def test_photographs_without_a_group():
    with pytest.raises(InputError, match=r"losses \(2, 5\), 4 groups; expected"):
        certify(np.array([0.0, 1.0]), np.zeros((2, 5), dtype=bool), np.arange(4), 0.1, 0.1)


def test_a_loss_at_threshold_one():
    with pytest.raises(InputError, match=r"^losses at threshold 1; expected none, it always runs both$"):
        certify(np.array([0.0, 1.0]), np.ones((2, 5), dtype=bool), np.arange(5), 0.1, 0.1)


@pytest.mark.parametrize("losses", [[], [0.5, 1.1], [-0.1], [np.nan]])
def test_losses_outside_their_range(losses):
    with pytest.raises(InputError, match=r"losses; expected some, each in \[0, 1\]$"):
        p_value(np.array(losses), 0.1)
