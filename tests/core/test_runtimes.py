import sys

import numpy as np
import pytest

from l2r2.classification import SessionClassifier
from l2r2.errors import ArtifactError, BackendError, BackendMissing
from l2r2.runtimes import OnnxRuntimeSession
from tests.fakes import FunctionSession
from tests.tiny import save_classifier


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return OnnxRuntimeSession(save_classifier(tmp_path_factory.mktemp("models") / "c.onnx", 32, gain=2.0))


def images(n):
    return np.random.default_rng(0).random((n, 3, 32, 32)).astype(np.float32)


def test_the_names_and_shapes(session):
    assert session.inputs == {"view": ["n", 3, 32, 32]}
    assert session.outputs == ("logits",)


@pytest.mark.parametrize("n", [1, 5])
def test_infer(session, n):
    np.testing.assert_allclose(session.infer({"view": images(n)})["logits"], 2 * images(n).mean(axis=(2, 3)), rtol=1e-5)


def test_a_batch_equals_one_by_one(session):
    singles = [session.infer({"view": images(5)[i : i + 1]})["logits"] for i in range(5)]
    np.testing.assert_allclose(session.infer({"view": images(5)})["logits"], np.concatenate(singles), rtol=1e-6)


@pytest.mark.parametrize(
    "feed", [{}, {"other": images(1)}, {"view": images(1)[:, :2]}, {"view": images(1).astype(float)}]
)
def test_a_feed_that_does_not_fit(session, feed):
    with pytest.raises(BackendError, match=r"^ONNX Runtime failed: .+$"):
        session.infer(feed)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.onnx cannot be loaded by ONNX Runtime: "):
        OnnxRuntimeSession(tmp_path / "none.onnx")


def test_what_is_no_model(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"bad\.onnx cannot be loaded by ONNX Runtime: "):
        OnnxRuntimeSession(tmp_path / "bad.onnx")


def test_without_onnx_runtime_the_message_has_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissing, match=r"^ONNX Runtime is not installed; run: pip install 'l2r2\[serve\]'$"):
        OnnxRuntimeSession(tmp_path / "any.onnx")


def classifier(answer):
    return SessionClassifier(FunctionSession(answer), "view", 3)


def test_a_classifier_gives_float32_rows():
    logits = classifier(lambda x: np.tile(np.arange(3.0), (len(x), 1))).logits(images(2))
    assert logits.dtype == np.float32
    assert logits.tolist() == [[0.0, 1.0, 2.0]] * 2


def test_a_classifier_of_nothing_runs_nothing():
    session = FunctionSession(lambda x: x)
    assert SessionClassifier(session, "view", 3).logits(np.empty((0, 3, 32, 32), np.float32)).shape == (0, 3)
    assert session.feeds == []


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (2, 3, 1)])
def test_another_shape_is_refused(shape):
    with pytest.raises(BackendError, match=r"^the model gave logits \(.*\); expected \(2, 3\)$"):
        classifier(lambda x: np.zeros(shape, np.float32)).logits(images(2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    with pytest.raises(BackendError, match=r"^the model gave logits that are not finite; its export or its precision"):
        classifier(lambda x: np.full((2, 3), value, np.float32)).logits(images(2))
