"""Whatever the runtime: one way to open a model, one way to run it, the same answers and the same refusals."""

import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest

from l2r2.classification import SessionClassifier
from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError
from l2r2.runtimes import PRECISIONS, RUNTIMES, OnnxRuntimeSession, ShapeProfile, open_session, why_not
from l2r2.types import Session
from tests.core.convnet import images, save_convnet, save_ir
from tests.fakes import FunctionSession
from tests.tiny import save_classifier

pytest.importorskip("openvino")

NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
each = pytest.mark.parametrize("runtime", NAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "c.onnx", 32, gain=2.0)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    return save_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx", channels=16, depth=3, size=32)


@each
def test_the_names_and_shapes(model, runtime):
    session = open_session(model, runtime)
    assert isinstance(session, Session)
    assert list(session.inputs) == ["view"]
    free, *fixed = session.inputs["view"]
    assert isinstance(free, str)
    assert fixed == [3, 32, 32]
    assert session.outputs == ("logits",)


@each
@pytest.mark.parametrize("n", [1, 5])
def test_infer(model, runtime, n):
    answer = open_session(model, runtime).infer({"view": images(n)})
    assert list(answer) == ["logits"]
    assert answer["logits"].dtype == np.float32
    np.testing.assert_allclose(answer["logits"], 2 * images(n).mean(axis=(2, 3)), rtol=1e-5)


@each
def test_a_batch_equals_one_by_one(convnet, runtime):
    session = open_session(convnet, runtime)
    singles = [session.infer({"view": images(5)[i : i + 1]})["logits"] for i in range(5)]
    np.testing.assert_allclose(session.infer({"view": images(5)})["logits"], np.concatenate(singles), atol=1e-6)


def test_the_runtimes_agree(convnet, tmp_path):
    expected = open_session(convnet).infer({"view": images(3)})["logits"]
    assert np.abs(expected).max() > 0.05
    for file in (convnet, save_ir(convnet, tmp_path / "c.xml")):
        np.testing.assert_allclose(
            open_session(file, "openvino").infer({"view": images(3)})["logits"], expected, atol=1e-5
        )


@each
def test_an_answer_is_the_callers_own(convnet, runtime):
    session = open_session(convnet, runtime)
    first = session.infer({"view": images(2)})["logits"]
    kept = first.copy()
    session.infer({"view": images(2, seed=1)})
    assert np.array_equal(first, kept)
    first[:] = 0
    assert np.array_equal(session.infer({"view": images(2)})["logits"], kept)


@each
def test_arrays_that_are_views_or_may_not_be_written(convnet, runtime):
    session = open_session(convnet, runtime)
    expected = session.infer({"view": images(4)})["logits"][::2]
    strided = images(4)[::2]
    np.testing.assert_allclose(session.infer({"view": strided})["logits"], expected, atol=1e-6)
    frozen = images(4)[::2].copy()
    frozen.flags.writeable = False
    np.testing.assert_allclose(session.infer({"view": frozen})["logits"], expected, atol=1e-6)


@each
def test_many_threads_each_get_their_own_answer(convnet, runtime):
    session = open_session(convnet, runtime)
    batches = [images(1 + seed % 3, seed) for seed in range(8)]
    expected = [session.infer({"view": batch})["logits"].copy() for batch in batches]
    together, wrong = threading.Barrier(8), []

    def work(index):
        try:
            together.wait(30)
            for turn in range(25):
                which = (index + turn) % 8
                answer = session.infer({"view": batches[which]})["logits"]
                if answer.shape != expected[which].shape or np.abs(answer - expected[which]).max() > 1e-5:
                    wrong.append((index, turn))
        except (BackendError, threading.BrokenBarrierError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@each
@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"other": images(1)},
        {"view": images(1), "other": images(1)},
        {"view": images(1)[:, :2]},
        {"view": images(1)[0]},
        {"view": images(1).astype(float)},
        {"view": images(1).astype(np.float16)},
    ],
    ids=["nothing", "another", "one too many", "channels", "rank", "double", "half"],
)
def test_a_feed_that_does_not_fit(model, runtime, feed):
    session = open_session(model, runtime)
    session.infer({"view": images(1)})  # OpenVINO would take what is missing from the call before
    with pytest.raises(BackendError, match=rf"^{NAMES[runtime]} failed: .+$") as caught:
        session.infer(feed)
    assert "\n" not in str(caught.value)


@each
def test_after_a_refusal_it_works_on(model, runtime):
    session = open_session(model, runtime)
    with pytest.raises(BackendError):
        session.infer({"view": images(1)[:, :2]})
    np.testing.assert_allclose(session.infer({"view": images(1)})["logits"], 2 * images(1).mean(axis=(2, 3)), rtol=1e-5)


@each
def test_a_missing_file(tmp_path, runtime):
    with pytest.raises(ArtifactError, match=rf"none\.onnx cannot be loaded by {NAMES[runtime]}: .+"):
        open_session(tmp_path / "none.onnx", runtime)


@each
@pytest.mark.parametrize("cut", [slice(0, 20), slice(0, -500)], ids=["hardly anything", "most"])
def test_a_truncated_file(convnet, tmp_path, runtime, cut):
    (tmp_path / "bad.onnx").write_bytes(convnet.read_bytes()[cut])
    with pytest.raises(ArtifactError, match=rf"bad\.onnx cannot be loaded by {NAMES[runtime]}: .+") as caught:
        open_session(tmp_path / "bad.onnx", runtime)
    assert "\n" not in str(caught.value)


@each
def test_an_operator_that_does_not_exist(convnet, tmp_path, runtime):
    changed = onnx.load(convnet)
    changed.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(changed, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError, match=r"odd\.onnx cannot be loaded by .*NoSuchOperator"):
        open_session(tmp_path / "odd.onnx", runtime)


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "serve"), ("openvino", "openvino")])
def test_without_the_package_the_message_has_the_command(tmp_path, monkeypatch, runtime, extra):
    monkeypatch.setitem(sys.modules, runtime, None)
    command = rf"^{NAMES[runtime]} is not installed; run: pip install 'l2r2\[{extra}\]'$"
    with pytest.raises(BackendMissing, match=command):
        open_session(tmp_path / "any.onnx", runtime)
    assert why_not(runtime).endswith(f"pip install 'l2r2[{extra}]'")


@each
def test_nothing_keeps_a_runtime_that_runs_here(runtime):
    assert why_not(runtime) is None


@pytest.mark.parametrize(
    ("runtime", "provider"),
    [("onnxruntime-cuda", "CUDAExecutionProvider"), ("onnxruntime-tensorrt", "TensorrtExecutionProvider")],
)
def test_a_provider_that_this_build_lacks(model, runtime, provider):
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    message = rf"^this ONNX Runtime \([\d.]+\) has no {provider}, only .*CPUExecutionProvider; run: pip uninstall -y "
    profile = ShapeProfile.of_batches({"view": ["n", 3, 32, 32]})
    with pytest.raises(BackendError, match=message):
        open_session(model, runtime, profile=profile)
    assert provider in why_not(runtime)


def test_an_unknown_runtime(model):
    with pytest.raises(ConfigError, match=r"^there is no runtime 'openvno'; did you mean openvino\? expected one of "):
        open_session(model, "openvno")
    with pytest.raises(ConfigError) as caught:
        open_session(model, "zzz")
    assert all(runtime in str(caught.value) for runtime in RUNTIMES)
    assert "did you mean" not in str(caught.value)


def test_an_unknown_precision(model):
    with pytest.raises(ConfigError, match=r"^there is no precision 'fp61'; did you mean fp16\? expected one of ") as c:
        open_session(model, precision="fp61")
    assert all(precision in str(c.value) for precision in PRECISIONS)


@each
def test_no_threads(model, runtime):
    with pytest.raises(ConfigError, match=r"^threads is 0; expected at least 1$"):
        open_session(model, runtime, threads=0)


def test_importing_the_runtimes_imports_none_of_them():
    heavy = ("onnxruntime", "openvino", "torch", "timm", "tensorrt_rtx", "cuda.bindings.runtime", "onnx")
    program = f"import sys, l2r2.runtimes; print(*set({heavy!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_class_itself_opens_a_model_on_the_cpu(model):
    session = OnnxRuntimeSession(model, 2)
    assert session.inputs == {"view": ["n", 3, 32, 32]}


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
