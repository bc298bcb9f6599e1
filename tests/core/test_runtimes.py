"""Whatever the runtime: one way to open a model, one way to run it, the same answers and the same refusals."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from l2r2.classification import SessionClassifier
from l2r2.errors import ArtifactError, BackendError, BackendMissing, ConfigError
from l2r2.runtimes import PRECISIONS, RUNTIMES, OnnxRuntimeSession, ShapeProfile, open_session, open_vino, why_not
from l2r2.types import Session
from tests.core.convnet import save_convnet
from tests.fakes import FunctionSession
from tests.tiny import save_classifier

openvino = pytest.importorskip("openvino")

NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
each = pytest.mark.parametrize("runtime", NAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "c.onnx", 32, gain=2.0)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    return save_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx", channels=16, depth=3, size=32)


@pytest.fixture
def ir(convnet, tmp_path):
    openvino.save_model(openvino.Core().read_model(str(convnet)), tmp_path / "c.xml", compress_to_fp16=False)
    return tmp_path / "c.xml"


def images(n, seed=0):
    return np.random.default_rng(seed).random((n, 3, 32, 32)).astype(np.float32)


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


def test_the_runtimes_agree(convnet, ir):
    expected = open_session(convnet).infer({"view": images(3)})["logits"]
    assert np.abs(expected).max() > 0.05
    for file in (convnet, ir):
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


@pytest.mark.parametrize(
    ("damage", "message"), [("truncate", r"Incorrect weights in bin file"), ("remove", r"bin file cannot be found")]
)
def test_openvinos_weights_that_are_not_whole(ir, damage, message):
    weights = ir.with_suffix(".bin")
    if damage == "remove":
        weights.unlink()
    else:
        os.truncate(weights, 100)
    with pytest.raises(ArtifactError, match=rf"c\.xml cannot be loaded by OpenVINO: .*{message}"):
        open_session(ir, "openvino")


def test_openvino_computes_in_float32_and_as_many_side_by_side_as_cores(convnet, monkeypatch):
    monkeypatch.setattr(open_vino, "COPIES_BYTES", 0)  # one for all
    cores = open_vino.available_cores()
    for threads in (1, 2):
        compiled = open_session(convnet, "openvino", threads=threads)._compiled
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        streams = max(1, cores // threads)
        assert compiled.get_property("NUM_STREAMS") == streams
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(cores, streams * threads)


@pytest.mark.parametrize("limit", [0, open_vino.COPIES_BYTES], ids=["one for all", "copies"])
def test_openvino_answers_more_callers_than_it_has_room_for(convnet, monkeypatch, limit):
    monkeypatch.setattr(open_vino, "COPIES_BYTES", limit)
    monkeypatch.setattr(open_vino, "available_cores", lambda: 3)
    session = open_session(convnet, "openvino")
    assert (session._compiled.get_property("NUM_STREAMS") == 0) == bool(limit)
    photos = images(40)
    expected = session.infer({"view": photos})["logits"]
    together = threading.Barrier(8)

    def ask(first):
        together.wait()
        return [session.infer({"view": photos[i : i + 1]})["logits"][0] for i in range(first, 40, 8)]

    with ThreadPoolExecutor(8) as pool:
        for first, found in enumerate(pool.map(ask, range(8))):
            np.testing.assert_allclose(found, expected[first::8], atol=1e-5)
    assert 1 <= len(session._requests) <= 3
    if len(session._requests) == 3:
        assert session._copy is None


def test_openvino_without_room_for_a_copy_says_so_and_works_on(convnet, monkeypatch):
    monkeypatch.setattr(open_vino, "available_cores", lambda: 2)
    session = open_session(convnet, "openvino")
    request = session._idle.pop()  # as if another thread ran it
    session._copy = b"no model"
    with pytest.raises(BackendError, match=r"^OpenVINO failed: "):
        session.infer({"view": images(1)})
    session._idle.append(request)
    for _ in range(3):
        assert session.infer({"view": images(1)})["logits"].shape == (1, 16)


def test_openvino_runs_in_the_thread_that_calls(convnet):
    """So that none is woken for it."""
    session, photos = open_session(convnet, "openvino"), images(64)
    session.infer({"view": photos})
    whole, own = time.process_time(), time.thread_time()
    for _ in range(20):
        session.infer({"view": photos})
    whole, own = time.process_time() - whole, time.thread_time() - own
    assert own > 0.8 * whole


def test_openvino_keeps_what_it_compiles_only_where_it_is_told(convnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = open_session(convnet, "openvino").infer({"view": images(2)})["logits"]
    assert list(tmp_path.rglob("*")) == []
    for _ in range(2):
        kept = open_session(convnet, "openvino", cache=tmp_path / "cache").infer({"view": images(2)})["logits"]
        np.testing.assert_allclose(kept, plain, atol=1e-6)
    (blob,) = (tmp_path / "cache").rglob("*.blob")
    assert blob.parent == tmp_path / "cache" / "openvino"


def test_openvino_compiled_for_one_shape_answers_batches_one_by_one(convnet):
    profile = ShapeProfile.of_batches({"view": ["n", 3, 32, 32]}, largest=1)
    one, any_ = open_session(convnet, "openvino", profile=profile), open_session(convnet, "openvino")
    assert one.inputs["view"][1:] == [3, 32, 32]
    assert one._compiled.inputs[0].partial_shape.is_static
    for n in (1, 3):
        expected = any_.infer({"view": images(n)})["logits"]
        np.testing.assert_allclose(one.infer({"view": images(n)})["logits"], expected, atol=1e-5)
    with pytest.raises(BackendError, match=r"view is float32 \[1, 3, 16, 16\]; expected float32 "):
        one.infer({"view": images(1)[:, :, :16, :16]})
    several = ShapeProfile.of_batches({"view": ["n", 3, 32, 32]}, best=4)
    with pytest.raises(ConfigError, match=r"^OpenVINO compiles for a batch of 1 or for any; expected no profile, got "):
        open_session(convnet, "openvino", profile=several)
    with pytest.raises(ArtifactError, match="cannot be loaded by OpenVINO"):
        open_session(convnet, "openvino", profile=ShapeProfile.of_batches({"other": ["n", 3, 32, 32]}, largest=1))


SIGNALLED = """
import gc, signal, sys, threading
from pathlib import Path
from l2r2.runtimes import open_session

signal.signal(signal.SIGCHLD, lambda *_: None)
sessions = [open_session(Path(sys.argv[1]), "openvino") for _ in range(3)]
del sessions[0]
gc.collect()
thread = threading.Thread(target=sessions.clear)
thread.start()
thread.join()
gc.collect()
signal.raise_signal(signal.SIGCHLD)
print('alive')
"""


def test_a_signal_after_openvinos_sessions_are_gone(convnet):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, convnet], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


TOGETHER = """
import sys, threading
from pathlib import Path
from l2r2.runtimes import open_session

threads = [threading.Thread(target=open_session, args=(Path(sys.argv[1]), "openvino")) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("opened")
"""


@pytest.mark.parametrize("turn", range(4))
def test_openvinos_first_sessions_may_be_opened_side_by_side(turn, convnet):
    done = subprocess.run([sys.executable, "-c", TOGETHER, str(convnet)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "opened\n", done.stderr


TELLS_NOBODY = """
import os, sys
from pathlib import Path

told = []

def hook(event, arguments):
    if event in {"os.fork", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"}:
        told.append(event)

sys.addaudithook(hook)
from l2r2.runtimes import open_session

open_session(Path(sys.argv[1]), "openvino")
print(told, sorted(path.name for path in Path(os.environ["HOME"]).iterdir()))
"""


def test_openvino_tells_nobody_that_it_is_used(convnet, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TELLS_NOBODY, str(convnet)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[] []\n", done.stderr


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
