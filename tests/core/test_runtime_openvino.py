"""OpenVINO, where it is not like the others: copies, threads, signals, a shape of its own, what it keeps and tells."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import pytest

from l2r2.errors import ArtifactError, BackendError, ConfigError
from l2r2.runtimes import ShapeProfile, open_session, open_vino
from tests.core.convnet import images, save_convnet, save_ir

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    return save_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx", channels=16, depth=3, size=32)


@pytest.fixture
def ir(convnet, tmp_path):
    return save_ir(convnet, tmp_path / "c.xml")


@pytest.mark.parametrize(
    ("damage", "message"), [("truncate", r"Incorrect weights in bin file"), ("remove", r"bin file cannot be found")]
)
def test_weights_that_are_not_whole(ir, damage, message):
    weights = ir.with_suffix(".bin")
    if damage == "remove":
        weights.unlink()
    else:
        os.truncate(weights, 100)
    with pytest.raises(ArtifactError, match=rf"c\.xml cannot be loaded by OpenVINO: .*{message}"):
        open_session(ir, "openvino")


def test_it_computes_in_float32_and_as_many_side_by_side_as_cores(convnet, monkeypatch):
    monkeypatch.setattr(open_vino, "COPIES_BYTES", 0)  # one for all
    cores = open_vino.available_cores()
    for threads in (1, 2):
        compiled = open_session(convnet, "openvino", threads=threads)._compiled
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        streams = max(1, cores // threads)
        assert compiled.get_property("NUM_STREAMS") == streams
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(cores, streams * threads)


@pytest.mark.parametrize("limit", [0, open_vino.COPIES_BYTES], ids=["one for all", "copies"])
def test_it_answers_more_callers_than_it_has_room_for(convnet, monkeypatch, limit):
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


def test_without_room_for_a_copy_says_so_and_works_on(convnet, monkeypatch):
    monkeypatch.setattr(open_vino, "available_cores", lambda: 2)
    session = open_session(convnet, "openvino")
    request = session._idle.pop()  # as if another thread ran it
    session._copy = b"no model"
    with pytest.raises(BackendError, match=r"^OpenVINO failed: "):
        session.infer({"view": images(1)})
    session._idle.append(request)
    for _ in range(3):
        assert session.infer({"view": images(1)})["logits"].shape == (1, 16)


def test_it_runs_in_the_thread_that_calls(convnet):
    """So that none is woken for it."""
    session, photos = open_session(convnet, "openvino"), images(64)
    session.infer({"view": photos})

    def share() -> float:
        whole, own = time.process_time(), time.thread_time()
        for _ in range(20):
            session.infer({"view": photos})
        return (time.thread_time() - own) / (time.process_time() - whole)

    assert median(share() for _ in range(5)) > 0.8


def test_it_keeps_what_it_compiles_only_where_it_is_told(convnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = open_session(convnet, "openvino").infer({"view": images(2)})["logits"]
    assert list(tmp_path.rglob("*")) == []
    for _ in range(2):
        kept = open_session(convnet, "openvino", cache=tmp_path / "cache").infer({"view": images(2)})["logits"]
        np.testing.assert_allclose(kept, plain, atol=1e-6)
    (blob,) = (tmp_path / "cache").rglob("*.blob")
    assert blob.parent == tmp_path / "cache" / "openvino"


def test_compiled_for_one_shape_answers_batches_one_by_one(convnet):
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


def test_a_signal_after_the_sessions_are_gone(convnet):
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
def test_the_first_sessions_may_be_opened_side_by_side(turn, convnet):
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


def test_it_tells_nobody_that_it_is_used(convnet, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TELLS_NOBODY, str(convnet)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[] []\n", done.stderr
