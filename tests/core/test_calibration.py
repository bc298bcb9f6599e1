import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.calibration import BOUNDS, Temperature, fit_classwise_temperature, fit_temperature, no_temperature
from l2r2.errors import InputError
from l2r2.logspace import log_normalize
from l2r2.metrics import ece, nll


def sampled(temperature: float, n: int = 5000, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 4
    return logits, (logits / temperature + rng.gumbel(size=(n, k))).argmax(axis=1)


def accuracy(temperature: Temperature, logits: np.ndarray, labels: np.ndarray) -> float:
    return float((temperature.calibrate(logits).argmax(axis=1) == labels).mean())


def test_golden():
    # softmax(2 / 2, 0) = e / (e + 1)
    calibrated = Temperature(np.array([2.0])).calibrate(np.array([[2.0, 0.0]]))
    np.testing.assert_allclose(np.exp(calibrated), [[0.7310586, 0.2689414]], rtol=1e-6)


def test_one_temperature_a_class_divides_its_column():
    calibrated = Temperature(np.array([2.0, 0.5])).calibrate(np.array([[2.0, 1.0]]))
    np.testing.assert_allclose(calibrated, log_normalize(np.array([[1.0, 2.0]])))


@given(st.integers(0, 500), st.floats(0.05, 20))
def test_the_answer_stays(seed, temperature):
    logits = np.random.default_rng(seed).normal(size=(8, 4)) * 10
    calibrated = Temperature(np.array([temperature])).calibrate(logits)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), logits.argmax(axis=1))


@given(st.integers(0, 500), st.floats(1.01, 20))
def test_above_one_lowers_confidence(seed, temperature):
    logits = np.random.default_rng(seed).normal(size=(8, 4)) * 10
    warm = Temperature(np.array([temperature])).calibrate(logits).max(axis=1)
    assert np.all(warm <= no_temperature().calibrate(logits).max(axis=1))


def test_calibrate_keeps_float32():
    assert no_temperature().calibrate(np.zeros((2, 3), np.float32)).dtype == np.float32


@pytest.mark.parametrize("values", [[0.0], [-1.0], [np.nan], [np.inf], [1.0, -1.0]])
def test_a_temperature_is_positive_and_finite(values):
    with pytest.raises(InputError, match=r"^temperature is .*; expected positive, finite numbers"):
        Temperature(np.array(values))


def test_temperatures_for_another_number_of_classes():
    with pytest.raises(InputError, match=r"^2 temperatures for 3 classes; expected one or one a class$"):
        Temperature(np.ones(2)).calibrate(np.zeros((1, 3)))


def test_fit_golden():
    # Every margin is 2 and three of four are right: sigmoid(2 / T) = 3/4, so T = 2 / ln 3 = 1.820478.
    logits = np.tile([[2.0, 0.0]], (4, 1))
    assert fit_temperature(logits, np.array([0, 0, 0, 1])).values[0] == pytest.approx(1.820478, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 8.0])
def test_fit_recovers_a_known_temperature(temperature):
    assert fit_temperature(*sampled(temperature)).values[0] == pytest.approx(temperature, rel=0.06)


def test_fit_stays_at_one_when_nothing_improves():
    # Logits that say nothing have the same NLL at every temperature.
    assert fit_temperature(np.zeros((6, 3)), np.array([0, 1, 2, 0, 1, 2])).values.tolist() == [1.0]


@given(st.integers(0, 200))
def test_fit_never_raises_the_nll(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(12, 3)) * rng.choice([0.1, 1, 30]), rng.integers(0, 3, 12)
    fitted = fit_temperature(logits, labels)
    assert nll(fitted.calibrate(logits), labels) <= nll(log_normalize(logits), labels) + 1e-12
    assert BOUNDS[0] <= fitted.values[0] <= BOUNDS[1]


def test_fit_of_separable_logits_stops_at_the_lower_bound():
    assert fit_temperature(np.eye(3), np.arange(3)).values[0] == pytest.approx(BOUNDS[0], rel=1e-3)


def test_fit_of_logits_that_are_always_wrong_stops_at_the_upper_bound():
    assert fit_temperature(50 * np.eye(3), np.array([1, 2, 0])).values[0] == pytest.approx(BOUNDS[1], rel=1e-3)


def test_fit_of_one_photograph_stays_inside_the_bounds():
    assert BOUNDS[0] <= fit_temperature(np.array([[1e6, 0.0]]), np.array([0])).values[0] <= BOUNDS[1]


@pytest.mark.parametrize("fit", [fit_temperature, fit_classwise_temperature])
def test_fit_refuses_logits_that_are_not_finite(fit):
    logits = np.array([[1.0, 0.0], [np.nan, 0.0], [np.inf, np.nan]])
    with pytest.raises(InputError, match=r"^2 of 3 rows of logits are not finite; expected numbers"):
        fit(logits, np.array([0, 1, 0]))


@pytest.mark.parametrize("fit", [fit_temperature, fit_classwise_temperature])
def test_fit_refuses_an_empty_split(fit):
    with pytest.raises(InputError, match=r"^no photographs to calibrate on; the validation split is empty$"):
        fit(np.empty((0, 3)), np.empty(0, int))


@given(st.integers(0, 100))
def test_classwise_never_lowers_accuracy_nor_raises_ece(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    logits = (rng.normal(size=(40, 3)) + 2 * np.eye(3)[labels]) * np.array([1.0, 4.0, 0.5])
    single, classwise = fit_temperature(logits, labels), fit_classwise_temperature(logits, labels)
    assert accuracy(classwise, logits, labels) >= accuracy(single, logits, labels)
    assert ece(classwise.calibrate(logits), labels) <= ece(single.calibrate(logits), labels) + 1e-12


def test_classwise_lowers_the_ece_of_one_overconfident_class():
    logits, labels = sampled(1.0, n=1500, k=3)
    logits[:, 1] *= 3
    single, classwise = fit_temperature(logits, labels), fit_classwise_temperature(logits, labels)
    assert ece(classwise.calibrate(logits), labels) < 0.7 * ece(single.calibrate(logits), labels)


def test_classwise_stays_inside_the_bounds():
    values = fit_classwise_temperature(np.eye(3), np.arange(3)).values
    assert np.all((values >= BOUNDS[0]) & (values <= BOUNDS[1]))
