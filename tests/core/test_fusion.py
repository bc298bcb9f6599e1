import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.errors import ArtifactError, InputError
from l2r2.fusion import (
    Average,
    Evidence,
    FullyConnected,
    MaxConfidence,
    MaxScaledConfidence,
    Operator,
    Threshold,
    WeightedLogits,
    fit_average,
    fit_fully_connected,
    fit_threshold,
    fit_weighted_logits,
    make_operator,
    oracle,
)
from l2r2.logspace import confidence, log_normalize
from l2r2.metrics import nll

# Three classes. As they left the networks FULL is surer, calibrated (T = 4 for FULL) FG is.
FG_LOGITS = np.log(np.array([[0.7, 0.2, 0.1]]))
FULL_LOGITS = 4 * np.log(np.array([[0.3, 0.5, 0.2]]))
FG = Evidence(FG_LOGITS, FG_LOGITS)
FULL = Evidence(FULL_LOGITS, FULL_LOGITS / 4)
NONE = np.zeros((1, 3))


def random_pair(seed: int, n: int = 12, k: int = 4) -> tuple[Evidence, Evidence, np.ndarray, np.ndarray]:
    """Evidence of FG and FULL that know the labels a little, a log-prior that is in both beliefs, the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    prior = rng.normal(size=(n, k))
    pair = []
    for temperature in (2.0, 0.7):
        logits = 2 * rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
        pair.append(Evidence(logits, log_normalize(log_normalize(logits / temperature) + prior)))
    return pair[0], pair[1], prior, labels


def random_operators(seed: int, k: int = 4) -> list[Operator]:
    rng = np.random.default_rng(seed)
    return [
        MaxConfidence(),
        MaxScaledConfidence(),
        Threshold(float(rng.random())),
        Average(),
        Average(float(rng.random())),
        WeightedLogits(rng.normal(size=k), rng.normal(size=k)),
        FullyConnected(
            rng.normal(size=2 * k),
            rng.random(2 * k) + 0.5,
            rng.normal(size=(2 * k, 5)),
            rng.normal(size=5),
            rng.normal(size=(5, k)),
            rng.normal(size=k),
        ),
    ]


def probs(operator: Operator, prior: np.ndarray = NONE) -> list[float]:
    return np.exp(operator(FG, FULL, prior))[0].tolist()


def test_max_golden():
    # FULL as it left the network: (0.3, 0.5, 0.2)⁴ = (81, 625, 16) / 10⁴; 625 / 722 = 0.866 beats 0.7.
    assert probs(MaxConfidence()) == pytest.approx([81 / 722, 625 / 722, 16 / 722])


def test_smax_golden():
    # Calibrated, 0.7 beats 0.5.
    assert probs(MaxScaledConfidence()) == pytest.approx([0.7, 0.2, 0.1])


def test_smax_gives_ties_to_fg():
    mirrored = Evidence(FG_LOGITS[:, ::-1], FG_LOGITS[:, ::-1])
    assert MaxScaledConfidence()(FG, mirrored, NONE).tolist() == FG.belief.tolist()


@pytest.mark.parametrize(("t", "expected"), [(0.3, [0.4, 0.35, 0.25]), (0.45, [0.1, 0.8, 0.1])])
def test_threshold_golden(t, expected):
    # FG is 0.4 sure: above t = 0.3 it answers, though FULL is surer; at t = 0.45 the surer of the two does.
    fg, full = (np.log(np.array([row])) for row in ([0.4, 0.35, 0.25], [0.1, 0.8, 0.1]))
    assert np.exp(Threshold(t)(Evidence(fg, fg), Evidence(full, full), NONE))[0].tolist() == pytest.approx(expected)


def test_threshold_at_fg_confidence_is_not_above():
    fg, full = (np.log(np.array([row])) for row in ([0.5, 0.5, 0.0 + 1e-300], [0.1, 0.8, 0.1]))
    answer = Threshold(float(confidence(fg)[0]))(Evidence(fg, fg), Evidence(full, full), NONE)
    assert answer.tolist() == full.tolist()


@pytest.mark.parametrize(("weight", "expected"), [(0.5, [0.5, 0.35, 0.15]), (0.25, [0.4, 0.425, 0.175])])
def test_average_golden(weight, expected):
    # w (0.7, 0.2, 0.1) + (1 - w) (0.3, 0.5, 0.2)
    assert probs(Average(weight)) == pytest.approx(expected)


def test_average_of_weight_zero_and_one_are_the_inputs_exactly():
    fg, full, prior, _ = random_pair(0)
    np.testing.assert_array_equal(Average(1.0)(fg, full, prior), fg.belief)
    np.testing.assert_array_equal(Average(0.0)(fg, full, prior), full.belief)


def test_weighted_logits_golden():
    # w₁ z₁ + w₂ z₂ = (2 ln 0.7 + 0, 0 + 4 ln 0.5, ln 0.1) = ln (0.49, 0.0625, 0.1); over their sum 0.6525
    operator = WeightedLogits(np.array([2.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]))
    assert probs(operator) == pytest.approx([0.49 / 0.6525, 0.0625 / 0.6525, 0.1 / 0.6525])


def test_weighted_logits_add_the_prior_once():
    operator = WeightedLogits(np.array([2.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]))
    # The prior's odds 1 : 2 : 1 on top of 0.49 : 0.0625 : 0.1.
    weights = np.array([0.49, 0.125, 0.1])
    assert probs(operator, np.log(np.array([[1.0, 2.0, 1.0]]))) == pytest.approx(weights / weights.sum())


def test_fully_connected_golden():
    # x = (z - 1) / 2 of z = (1, 3 | 5, 7) is (0, 1, 2, 3); the hidden units are 0 + 2 and max(0, 1 - 3) = 0;
    # the outputs (2, 0) + (0, 1) = (2, 1): softmax = e / (e + 1)
    operator = FullyConnected(
        mean=np.ones(4),
        scale=np.full(4, 2.0),
        w1=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]),
        b1=np.zeros(2),
        w2=np.array([[1.0, 0.0], [5.0, 5.0]]),
        b2=np.array([0.0, 1.0]),
    )
    fg, full = np.array([[1.0, 3.0]]), np.array([[5.0, 7.0]])
    answer = operator(Evidence(fg, log_normalize(fg)), Evidence(full, log_normalize(full)), np.zeros((1, 2)))
    assert np.exp(answer)[0].tolist() == pytest.approx([np.e / (np.e + 1), 1 / (np.e + 1)])


@given(st.integers(0, 300))
def test_every_operator_gives_rows_that_sum_to_one(seed):
    fg, full, prior, _ = random_pair(seed)
    for operator in random_operators(seed):
        np.testing.assert_allclose(np.exp(operator(fg, full, prior)).sum(axis=1), 1.0, rtol=1e-9)


@given(st.integers(0, 300))
def test_every_operator_keeps_the_class_order(seed):
    """Renaming the classes and fusing is fusing and renaming."""
    fg, full, prior, _ = random_pair(seed)
    order = np.random.default_rng(seed).permutation(4)
    both = np.concatenate([order, order + 4])
    turned = [Evidence(e.logits[:, order], e.belief[:, order]) for e in (fg, full)]
    for operator in random_operators(seed):
        match operator:
            case WeightedLogits():
                again: Operator = WeightedLogits(operator.w_fg[order], operator.w_full[order])
            case FullyConnected():
                again = FullyConnected(
                    operator.mean[both],
                    operator.scale[both],
                    operator.w1[both],
                    operator.b1,
                    operator.w2[:, order],
                    operator.b2[order],
                )
            case _:
                again = operator
        expected = operator(fg, full, prior)[:, order]
        np.testing.assert_allclose(again(*turned, prior[:, order]), expected, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 300))
def test_every_operator_answers_a_batch_as_one_by_one(seed):
    fg, full, prior, _ = random_pair(seed)
    for operator in random_operators(seed):
        singles = [
            operator(*(Evidence(e.logits[i : i + 1], e.belief[i : i + 1]) for e in (fg, full)), prior[i : i + 1])
            for i in range(12)
        ]
        np.testing.assert_allclose(operator(fg, full, prior), np.concatenate(singles), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 300), st.floats(0, 1))
def test_threshold_is_its_definition(seed, t):
    fg, full, prior, _ = random_pair(seed)
    answer = Threshold(t)(fg, full, prior)
    for i in range(12):
        p_fg, p_full = np.exp(fg.belief[i]).max(), np.exp(full.belief[i]).max()
        expected = fg if p_fg > t or p_fg >= p_full else full
        np.testing.assert_array_equal(answer[i], expected.belief[i])


@given(st.integers(0, 300))
def test_full_with_itself_is_full(seed):
    full, _, prior, _ = random_pair(seed)
    w = np.random.default_rng(seed).random(4)
    operators = [MaxConfidence(), MaxScaledConfidence(), Threshold(0.5), Average(), WeightedLogits(w, 1 - w)]
    for operator in operators:
        none = np.zeros_like(prior)
        belief = log_normalize(full.logits / 2)
        same = operator(Evidence(full.logits, belief), Evidence(full.logits, belief), none)
        np.testing.assert_array_equal(same.argmax(axis=1), full.logits.argmax(axis=1))


@pytest.mark.parametrize("operator", random_operators(0), ids=lambda operator: operator.name)
def test_an_operator_survives_its_parameters(operator):
    fg, full, prior, _ = random_pair(1)
    again = make_operator(operator.name, operator.parameters())
    assert type(again) is type(operator)
    np.testing.assert_array_equal(again(fg, full, prior), operator(fg, full, prior))


def test_an_unknown_operator():
    with pytest.raises(
        ArtifactError, match=r"^fusion operator 'sum' is unknown; expected max, smax, R, wavg, WL or FC$"
    ):
        make_operator("sum", {})


@pytest.mark.parametrize("name", ["R", "wavg", "WL", "FC"])
def test_an_operator_without_its_parameters(name):
    with pytest.raises(ArtifactError, match=rf"^fusion operator '{name}' lacks its parameter '\w+'; export the bundle"):
        make_operator(name, {})


def test_oracle_is_right_if_any_input_is():
    fg, full = np.eye(3)[[0, 0, 1, 1]], np.eye(3)[[0, 2, 2, 1]]
    assert oracle(fg, full, np.array([0, 2, 0, 2])).tolist() == [True, True, False, False]


@given(st.integers(0, 100))
def test_no_choice_between_two_beats_the_oracle(seed):
    fg, full, prior, labels = random_pair(seed)
    best = oracle(fg.belief, full.belief, labels)
    for operator in (MaxScaledConfidence(), Threshold(0.4)):
        assert np.all((operator(fg, full, prior).argmax(axis=1) == labels) <= best)


@given(st.integers(0, 60))
def test_fit_average_is_the_best_of_its_grid(seed):
    fg, full, prior, labels = random_pair(seed)
    scores = {w: (Average(w)(fg, full, prior).argmax(axis=1) == labels).mean() for w in np.linspace(0, 1, 101).tolist()}
    fitted = fit_average(fg, full, labels)
    best = [w for w, score in scores.items() if score == max(scores.values())]
    assert abs(fitted.weight - 0.5) == pytest.approx(min(abs(w - 0.5) for w in best))
    assert fitted.weight in best


@given(st.integers(0, 60))
def test_fit_threshold_is_the_lowest_of_the_best(seed):
    fg, full, prior, labels = random_pair(seed)
    fitted = fit_threshold(fg, full, labels)
    candidates = [0.0, *sorted(confidence(fg.belief).tolist())]
    scores = [(Threshold(t)(fg, full, prior).argmax(axis=1) == labels).mean() for t in candidates]
    assert fitted.t == candidates[int(np.argmax(scores))]


def test_weighted_logits_are_fitted_to_the_optimum():
    """At the optimum the gradient vanishes: Σ_n (p - y) z = 0 for every class and input."""
    fg, full, _, labels = random_pair(0, n=400)
    fitted = fit_weighted_logits(fg.logits, full.logits, labels)
    error = np.exp(fitted(fg, full, np.zeros_like(fg.logits))) - np.eye(4)[labels]
    for logits in (fg.logits, full.logits):
        np.testing.assert_allclose((error * logits).mean(axis=0), 0.0, atol=1e-4)


def test_weighted_logits_find_the_weights_that_made_the_labels():
    rng = np.random.default_rng(0)
    z_fg, z_full = rng.normal(size=(20000, 3)) * 2, rng.normal(size=(20000, 3)) * 2
    w_fg, w_full = np.array([1.0, 0.5, 0.2]), np.array([0.1, 0.6, 1.2])
    labels = (w_fg * z_fg + w_full * z_full + rng.gumbel(size=z_fg.shape)).argmax(axis=1)
    fitted = fit_weighted_logits(z_fg, z_full, labels)
    np.testing.assert_allclose(fitted.w_fg, w_fg, atol=0.06)
    np.testing.assert_allclose(fitted.w_full, w_full, atol=0.06)


def test_weighted_logits_of_separable_data_stay_bounded():
    fitted = fit_weighted_logits(np.eye(3), np.eye(3), np.arange(3))
    assert np.abs(np.concatenate([fitted.w_fg, fitted.w_full])).max() <= 10.0


@pytest.mark.parametrize("k", [2, 3])
def test_fully_connected_learns_what_neither_input_knows(k):
    # FG and FULL each tell a part: the class is their sum modulo k.
    rng = np.random.default_rng(0)
    parts = rng.integers(0, k, (2, 300))
    labels = parts.sum(axis=0) % k
    z_fg, z_full = (3 * np.eye(k)[part] + 0.3 * rng.normal(size=(300, k)) for part in parts)
    fitted = fit_fully_connected(z_fg, z_full, labels, hidden=16)
    answer = fitted(Evidence(z_fg, log_normalize(z_fg)), Evidence(z_full, log_normalize(z_full)), np.zeros((300, k)))
    assert answer.shape == (300, k)
    assert (answer.argmax(axis=1) == labels).mean() > 0.97
    assert nll(answer, labels) < 0.1


@pytest.mark.parametrize("k", [2, 3])
def test_fully_connected_is_the_network_that_was_fitted(k):
    """The arrays give what scikit-learn's own network gives."""
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(1)
    labels = np.arange(90) % k
    z_fg, z_full = (rng.normal(size=(90, k)) + np.eye(k)[labels] for _ in range(2))
    fitted = fit_fully_connected(z_fg, z_full, labels, hidden=8, seed=3)
    x = np.concatenate([z_fg, z_full], axis=1)
    net = MLPClassifier((8,), alpha=1e-2, solver="lbfgs", max_iter=2000, random_state=3)
    expected = net.fit((x - x.mean(axis=0)) / x.std(axis=0), labels).predict_proba((x - x.mean(axis=0)) / x.std(axis=0))
    answer = fitted(Evidence(z_fg, log_normalize(z_fg)), Evidence(z_full, log_normalize(z_full)), np.zeros((90, k)))
    np.testing.assert_allclose(np.exp(answer), expected, atol=1e-3)


def test_fully_connected_needs_every_class():
    with pytest.raises(InputError, match=r"^FC needs photographs of at least two classes and of all 3; got 2$"):
        fit_fully_connected(np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 2]))


@pytest.mark.parametrize("fit", [fit_weighted_logits, fit_fully_connected])
def test_fits_refuse_an_empty_split(fit):
    with pytest.raises(InputError, match=r"^logits \(0, 3\) and \(0, 3\) for 0 labels; expected equal shapes, n > 0$"):
        fit(np.empty((0, 3)), np.empty((0, 3)), np.empty(0, int))
