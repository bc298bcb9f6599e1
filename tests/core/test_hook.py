"""The shapes in the annotations are really checked while tests run."""

import sys

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeException

from l2r2.fusion import Evidence
from l2r2.logspace import log_normalize
from l2r2.recognizer import _largest
from tests.conftest import CHECKED


def test_a_wrong_rank_raises():
    with pytest.raises(jaxtyping.TypeCheckError, match="scores"):
        log_normalize(np.zeros(3))


def test_a_wrong_dtype_raises():
    with pytest.raises(jaxtyping.TypeCheckError, match="scores"):
        log_normalize(np.zeros((2, 3), dtype=int))


def test_two_fields_that_disagree_raise():
    with pytest.raises(jaxtyping.TypeCheckError, match="belief"):
        Evidence(np.zeros((2, 3)), np.zeros((2, 4)))


def test_a_wrong_plain_type_raises():
    with pytest.raises((jaxtyping.TypeCheckError, BeartypeException)):
        _largest(np.zeros(3), "two")


@pytest.mark.parametrize("name", CHECKED)
def test_every_checked_module_was_imported_through_the_hook(name):
    __import__(name)
    assert type(sys.modules[name].__loader__).__name__ == "_JaxtypingLoader"
