import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.calibration import Temperature
from l2r2.cascade import MAX_THRESHOLDS, Policy, Veto, choose_threshold, trade_off
from l2r2.errors import InputError
from l2r2.fusion import Average, Evidence, MaxScaledConfidence, Operator, Threshold
from l2r2.logspace import confidence, log_normalize
from l2r2.metrics import clustered_se
from l2r2.types import Stage

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_policy(operator: Operator, threshold: float) -> Policy:
    return Policy(
        {Stage.FG: Temperature(np.array([1.7])), Stage.FULL: Temperature(np.array([0.6]))}, operator, threshold
    )


def random_case(seed: int, n: int = 30, k: int = 4, dtype: type = np.float32) -> Case:
    """Logits of FG and FULL, where something was found, a log-prior, labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    fg, full = ((2 * rng.normal(size=(n, k)) + 2 * np.eye(k)[labels]).astype(dtype) for _ in range(2))
    prior = (rng.normal(size=(n, k)) * rng.integers(0, 2)).astype(dtype)
    return fg, full, rng.random(n) < 0.8, prior, labels


def evidence(policy: Policy, case: Case) -> tuple[Evidence, Evidence]:
    return policy.evidence(Stage.FG, case[0], case[3]), policy.evidence(Stage.FULL, case[1], case[3])


def accuracy(threshold: float, case: Case, operator: Operator) -> float:
    fg, full, found, prior, labels = case
    answers = make_policy(operator, threshold).decide(fg, full, found, prior).belief.argmax(axis=1)
    return float((answers == labels).mean())


@given(seed=st.integers(0, 10_000), t=st.floats(0, 1), dtype=st.sampled_from([np.float32, np.float64]))
def test_the_cascade_is_the_threshold_operator(seed, t, dtype):
    """⊕R with both classifiers always run, and FG first with the surer of the two below t, never differ."""
    case = random_case(seed, dtype=dtype)
    _, _, found, prior, _ = case
    gate = make_policy(MaxScaledConfidence(), t)
    always_both = Threshold(t)(*evidence(gate, case), prior)
    np.testing.assert_array_equal(gate.decide(*case[:4]).belief[found], always_both[found])


@given(seed=st.integers(0, 10_000), place=st.integers(0, 29))
def test_so_it_is_where_the_threshold_is_a_confidence_itself(seed, place):
    case = random_case(seed)
    fg, _ = evidence(make_policy(MaxScaledConfidence(), 0.5), case)
    t = float(confidence(fg.belief)[place])
    for operator in (MaxScaledConfidence(), Threshold(t)):
        gate = make_policy(operator, t)
        always_both = Threshold(t)(*evidence(gate, case), case[3])
        found = case[2]
        np.testing.assert_array_equal(gate.decide(*case[:4]).belief[found], always_both[found])


@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
def test_where_nothing_was_found_the_answer_is_full_alone(seed, t):
    case = random_case(seed)
    policy = make_policy(Average(), t)
    decision = policy.decide(*case[:4])
    missing = ~case[2]
    np.testing.assert_array_equal(decision.belief[missing], evidence(policy, case)[1].belief[missing])
    assert not decision.skipped_full[missing].any()


def test_threshold_zero_never_runs_full_where_something_was_found():
    case = random_case(1)
    np.testing.assert_array_equal(make_policy(Average(), 0.0).decide(*case[:4]).skipped_full, case[2])


def test_threshold_one_always_runs_full():
    fg, full, found, prior, _ = random_case(1)
    decision = make_policy(Average(), 1.0).decide(1000 * fg, full, found, prior)  # FG is certain of everything
    assert not decision.skipped_full.any()


@given(st.integers(0, 1000))
def test_a_higher_threshold_runs_full_at_least_as_often(seed):
    case = random_case(seed)
    skipped = [make_policy(Average(), t).decide(*case[:4]).skipped_full for t in (0.2, 0.5, 0.8)]
    assert np.all(skipped[1] <= skipped[0])
    assert np.all(skipped[2] <= skipped[1])


def test_evidence_golden():
    # softmax((ln 16, 0) / 2) = (4, 1) / 5; the prior's odds 1 : 2 make it (4, 2) / 6.
    policy = Policy({Stage.FG: Temperature(np.array([2.0]))}, Average(), 0.5)
    belief = policy.evidence(Stage.FG, np.array([[np.log(16.0), 0.0]]), np.log(np.array([[1.0, 2.0]]))).belief
    np.testing.assert_allclose(np.exp(belief), [[4 / 6, 2 / 6]])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_confidence(threshold):
    with pytest.raises(InputError, match=r"^gate threshold is .*; expected a confidence in \[0, 1\]$"):
        make_policy(Average(), threshold)


def test_the_threshold_operator_and_the_gate_agree():
    with pytest.raises(InputError, match=r"^⊕R has t = 0\.3 and the gate 0\.4; expected the same number$"):
        make_policy(Threshold(0.3), 0.4)


OPERATORS = st.sampled_from([MaxScaledConfidence(), Average(0.3), Threshold(0.9)])


def at(operator: Operator, threshold: float) -> Operator:
    """⊕R's own t is the gate's."""
    return Threshold(threshold) if isinstance(operator, Threshold) else operator


@given(seed=st.integers(0, 500), operator=OPERATORS)
def test_choosing_the_best_equals_brute_force(seed, operator):
    case = random_case(seed)
    fg, full = evidence(make_policy(MaxScaledConfidence(), 0.5), case)
    _, _, found, prior, labels = case
    candidates = [0.0, *sorted(confidence(fg.belief).tolist()), 1.0]
    scores = [accuracy(t, case, at(operator, t)) for t in candidates]
    chosen = choose_threshold(fg, full, found, labels, np.arange(30), operator, prior, rule="best")
    assert accuracy(chosen, case, at(operator, chosen)) == max(scores)
    assert chosen == candidates[int(np.argmax(scores))]


@given(seed=st.integers(0, 500), operator=OPERATORS)
def test_one_se_is_the_lowest_threshold_not_worse_by_more_than_one_standard_error(seed, operator):
    case = random_case(seed)
    fg, full = evidence(make_policy(MaxScaledConfidence(), 0.5), case)
    _, _, found, prior, labels = case
    groups = np.arange(30) // 2
    both = [choose_threshold(fg, full, found, labels, groups, operator, prior, rule) for rule in ("one_se", "best")]

    def right(threshold: float) -> np.ndarray:
        policy = make_policy(at(operator, threshold), threshold)
        return policy.decide(*case[:4]).belief.argmax(axis=1) == labels

    def close(threshold: float) -> bool:
        lost = right(both[1]).astype(float) - right(threshold)
        return bool(lost.mean() <= clustered_se(lost, groups))

    assert both[0] <= both[1]
    assert close(both[0])
    lower = [t for t in [0.0, *confidence(fg.belief)[found].tolist()] if t < both[0]]
    assert not any(close(t) for t in lower)


def test_the_default_rule_is_one_se():
    case = random_case(3)
    fg, full = evidence(make_policy(MaxScaledConfidence(), 0.5), case)
    arguments = (fg, full, case[2], case[4], np.arange(30), Average(), case[3])
    assert choose_threshold(*arguments) == choose_threshold(*arguments, rule="one_se")


def test_a_good_fg_needs_no_full():
    labels = np.arange(12) % 3
    logits = 3 * np.eye(3)[labels]
    good, bad = Evidence(logits, log_normalize(logits)), Evidence(-logits, log_normalize(-logits))
    chosen = choose_threshold(good, bad, np.ones(12, bool), labels, np.arange(12), MaxScaledConfidence(), 0 * logits)
    assert chosen == 0.0


def lossy(seed: int, n: int = 400) -> tuple[Case, np.ndarray]:
    """FG surer than right, FULL right nine times of ten; and groups of one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    truth = np.eye(3)[labels]
    fg = 1.5 * truth + 1.5 * rng.normal(size=(n, 3))
    full = 4.0 * truth + rng.normal(size=(n, 3))
    return (fg, full, np.ones(n, bool), np.zeros((n, 3)), labels), np.arange(n)


def test_the_certified_gate_is_the_lowest_that_loses_little_for_certain():
    case, groups = lossy(0)
    policy = make_policy(MaxScaledConfidence(), 0.5)
    fg, full = evidence(policy, case)
    chosen = {
        epsilon: choose_threshold(
            fg, full, case[2], case[4], groups, policy.operator, case[3], "risk", epsilon=epsilon, delta=0.1
        )
        for epsilon in (0.02, 0.05, 0.2)
    }
    assert chosen[0.02] >= chosen[0.05] >= chosen[0.2]
    assert chosen[0.2] < 1
    always = policy.operator(fg, full, case[3]).argmax(axis=1) == case[4]
    for epsilon, t in chosen.items():
        answer = np.where(confidence(fg.belief) > t, fg.belief.argmax(axis=1), always * case[4] + ~always * -1)
        assert (always & (answer != case[4])).mean() <= epsilon


def test_too_little_data_certify_nothing_and_full_always_runs():
    case, groups = lossy(1, n=20)
    policy = make_policy(MaxScaledConfidence(), 0.5)
    t = choose_threshold(
        *evidence(policy, case), case[2], case[4], groups, policy.operator, case[3], "risk", epsilon=0.02, delta=0.1
    )
    assert t == 1.0


HAZARD = Veto(np.array([False, True, False]), mass=0.1)


def vetoed(fg: list[float], full: list[float], prior: list[float], *, found: bool = True) -> tuple[int, bool]:
    ones = {stage: Temperature(np.ones(1)) for stage in Stage}
    policy = Policy(ones, MaxScaledConfidence(), 0.8, veto=HAZARD)
    decision = policy.decide(np.array([fg]), np.array([full]), np.array([found]), np.array([prior]))
    return int(decision.belief.argmax()), bool(decision.withheld[0])


NONE, HARMLESS, HAZARDOUS = [0.0] * 3, [6.0, 0.0, 0.0], [0.0, 6.0, 0.0]


def test_an_unsure_foreground_withholds_however_sure_full_is():
    assert vetoed([1.0, 0.0, 0.0], HARMLESS, NONE) == (0, True)  # FG gives the hazard 0.21


def test_an_unsure_foreground_withholds_however_sure_the_prior_is():
    assert vetoed([1.0, 0.0, 0.0], NONE, [9.0, 0.0, 0.0]) == (0, True)


def test_a_sure_foreground_is_heard():
    assert vetoed(HARMLESS, NONE, NONE) == (0, False)
    assert vetoed(HAZARDOUS, NONE, NONE) == (1, False)


def test_where_no_hazard_is_possible_nothing_is_withheld():
    assert vetoed([1.5, -4.0, 1.0], HARMLESS, NONE) == (0, False)


def test_a_hazardous_answer_that_the_foreground_did_not_give_is_withheld():
    assert vetoed([1.5, -4.0, 1.0], [0.0, 9.0, 0.0], NONE) == (1, True)


def test_where_nothing_was_found_the_foreground_has_not_spoken():
    assert vetoed(HARMLESS, [6.0, 4.0, 0.0], NONE, found=False) == (0, True)
    assert vetoed(HAZARDOUS, HARMLESS, NONE, found=False) == (0, False)


def test_without_a_veto_nothing_is_withheld():
    case = random_case(0)
    assert not make_policy(MaxScaledConfidence(), 0.5).decide(*case[:4]).withheld.any()


def test_another_rule_is_refused():
    case = random_case(0)
    fg, full = evidence(make_policy(Average(), 0.5), case)
    with pytest.raises(InputError, match=r"^gate rule is 'mean'; expected one_se, best or risk$"):
        choose_threshold(fg, full, case[2], case[4], np.arange(30), Average(), case[3], rule="mean")


def test_an_empty_split_is_refused():
    none = np.empty((0, 3))
    nothing = Evidence(none, none)
    with pytest.raises(InputError, match=r"^no photographs to choose the gate on; the validation split is empty$"):
        choose_threshold(nothing, nothing, np.empty(0, bool), np.empty(0, int), np.empty(0), Average(), none)


@given(seed=st.integers(0, 500), operator=OPERATORS)
def test_the_trade_off_is_what_each_threshold_does(seed, operator):
    case = random_case(seed)
    fg, full = evidence(make_policy(MaxScaledConfidence(), 0.5), case)
    _, _, found, prior, labels = case
    curve = trade_off(fg, full, found, labels, operator, prior)
    assert np.all(np.diff(curve.threshold) > 0)
    assert np.all(np.diff(curve.escalated) >= 0)
    assert (curve.threshold[0], curve.threshold[-1]) == (0.0, 1.0)
    assert curve.escalated[0] == pytest.approx((~found).mean())
    assert curve.escalated[-1] == 1.0
    for t, right, cost in zip(curve.threshold, curve.accuracy, curve.escalated, strict=True):
        decision = make_policy(at(operator, float(t)), float(t)).decide(*case[:4])
        assert right == pytest.approx((decision.belief.argmax(axis=1) == labels).mean())
        assert cost == pytest.approx((~decision.skipped_full).mean())


def test_many_photographs_are_thinned_to_quantiles():
    case = random_case(0, n=2000)
    fg, full = evidence(make_policy(MaxScaledConfidence(), 0.5), case)
    curve = trade_off(fg, full, case[2], case[4], Average(), case[3])
    assert len(curve.threshold) == MAX_THRESHOLDS
    assert (curve.threshold[0], curve.threshold[-1]) == (0.0, 1.0)
    assert set(curve.threshold[1:-1].tolist()) <= set(confidence(fg.belief).tolist())
