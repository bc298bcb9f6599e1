import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from l2r2.logspace import confidence, log_normalize

SCORES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e4, 1e4))


def test_golden():
    # softmax(0, ln 3) = (1, 3) / 4
    np.testing.assert_allclose(np.exp(log_normalize(np.array([[0.0, np.log(3.0)]]))), [[0.25, 0.75]], rtol=1e-12)


@given(SCORES)
def test_rows_sum_to_one(scores):
    np.testing.assert_allclose(np.exp(log_normalize(scores)).sum(axis=1), 1.0, rtol=1e-9)


@given(SCORES, st.floats(-1e3, 1e3))
def test_a_constant_changes_nothing(scores, constant):
    np.testing.assert_allclose(log_normalize(scores + constant), log_normalize(scores), atol=1e-8)


@given(SCORES)
def test_confidence_is_a_probability(scores):
    sure = confidence(log_normalize(scores))
    assert np.all((sure > 0) & (sure <= 1))


def test_huge_scores_do_not_overflow():
    assert log_normalize(np.array([[1e30, -1e30]], np.float32)).tolist() == [[0.0, pytest.approx(-2e30)]]


def test_an_empty_batch_stays_empty():
    assert log_normalize(np.empty((0, 4))).shape == (0, 4)


def test_the_dtype_stays():
    assert log_normalize(np.zeros((2, 3), np.float32)).dtype == np.float32
