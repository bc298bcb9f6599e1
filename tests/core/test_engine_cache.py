"""Engines are built once whoever asks, kept whole, and refused when they are not what they should be."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from l2r2.errors import ArtifactError, BackendError, ConfigError
from l2r2.runtimes import EngineCache, EngineKey, ShapeProfile, ShapeRange
from l2r2.runtimes.engine_cache import check_engine

KEY = EngineKey("0" * 64, "tensorrt", "10.13.0", "SM89", "fp16", ("head", "stem"), "view:1x3x8x8..1x3x8x8..4x3x8x8")

WORKER = """
import os, sys, time
from pathlib import Path
from l2r2.runtimes.engine_cache import EngineCache, EngineKey
folder, scratch, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
key = EngineKey("0" * 64, "tensorrt", "10.13.0", "SM89")

def build(out, progress):
    with (scratch / "builds").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    out.write_bytes(b"half ")
    time.sleep(seconds)
    out.write_bytes(b"engine of %d" % os.getpid())

def progress(what, share):
    (scratch / f"waiting-{os.getpid()}").write_text(what)

(scratch / f"ready-{os.getpid()}").touch()
while not (scratch / "go").exists():
    time.sleep(0.005)
print(EngineCache(folder).get_or_build(key, build, progress).read_bytes().decode())
"""


@pytest.fixture
def start():
    """Starts a process that asks for the engine; its build takes that many seconds."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, scratch: Path, seconds: float) -> subprocess.Popen:
            scratch.mkdir(exist_ok=True)
            command = [sys.executable, "-c", WORKER, str(folder), str(scratch), str(seconds)]
            worker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(worker.kill)
            return worker

        yield start


def until(condition, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def builder(data: bytes = b"engine"):
    def build(out, progress):
        out.write_bytes(data)

    return build


def never(out, progress):
    raise AssertionError("built again")


def only_whole(folder: Path) -> bool:
    """Nothing in the folder but finished engines and locks."""
    return all(len(path.name) == 32 or path.name.endswith(".lock") for path in folder.iterdir())


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def engine(cache):
    return cache.get_or_build(KEY, builder())


def test_what_was_never_built_is_not_found_and_not_built(cache):
    assert cache.find(KEY) is None
    assert not cache.folder.exists()


def test_what_was_built_is_found(cache, engine):
    assert engine.read_bytes() == b"engine"
    assert cache.find(KEY) == engine
    assert EngineCache(cache.folder).get_or_build(KEY, never) == engine
    assert only_whole(cache.folder)


def test_the_header_says_what_it_is(engine):
    header = json.loads((engine.parent / "engine.json").read_text())
    assert header["key"] == {**asdict(KEY), "pins": ["head", "stem"]}
    assert header["bytes"] == 6
    # printf engine | sha256sum
    assert header["sha256"] == "ed9f6f25068608efd412958da4dfc19328ca3511251fa6d5f9c42baf230e32f8"


@pytest.mark.parametrize("field", list(asdict(KEY)))
def test_another_value_of_any_field_is_another_engine(cache, engine, field):
    other = replace(KEY, **{field: ("stem",) if field == "pins" else "other"})
    assert other.digest != KEY.digest
    assert cache.find(other) is None


def test_the_order_of_pins_and_of_inputs_is_none(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"model")
    a, b = ShapeRange((1, 3), (1, 3), (4, 3)), ShapeRange((2,), (2,), (2,))
    keys = {
        EngineKey.of(tmp_path / "m.onnx", "tensorrt", "10", "SM80", pins=pins, profile=ShapeProfile(inputs)).digest
        for pins, inputs in [(("x", "y"), {"a": a, "b": b}), (("y", "x", "y"), {"b": b, "a": a})]
    }
    assert len(keys) == 1


def test_the_weights_beside_a_model_are_part_of_it(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    alone = EngineKey.of(model, "tensorrt", "10", "SM80")
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    with_weights = EngineKey.of(model, "tensorrt", "10", "SM80")
    (tmp_path / "m.onnx.data").write_bytes(b"others")
    assert len({key.model for key in (alone, with_weights, EngineKey.of(model, "tensorrt", "10", "SM80"))}) == 3


def test_a_missing_model_has_no_key(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.onnx cannot be read \(No such file or directory\)"):
        EngineKey.of(tmp_path / "none.onnx", "tensorrt", "10", "SM80")


def test_four_processes_build_once(start, tmp_path):
    scratch = tmp_path / "scratch"
    workers = [start(tmp_path / "engines", scratch, 0.3) for _ in range(4)]
    until(lambda: len(list(scratch.glob("ready-*"))) == 4)
    (scratch / "go").touch()
    answers = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    (owner,) = (scratch / "builds").read_text().split()
    assert answers == {f"engine of {owner}"}
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(list(scratch.glob("waiting-*"))) >= 1, "they did not meet"
    assert only_whole(tmp_path / "engines")


def test_a_builder_that_is_killed_leaves_the_build_to_the_one_that_waits(start, tmp_path):
    folder, scratch = tmp_path / "engines", tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "go").touch()
    first = start(folder, scratch, 3600)
    until((scratch / "builds").exists)
    second = start(folder, scratch, 0)
    waiting = scratch / f"waiting-{second.pid}"
    until(waiting.exists)
    until(lambda: waiting.read_text() != "")
    assert waiting.read_text() == f"waiting for process {first.pid}, which builds the same engine"
    key = EngineKey("0" * 64, "tensorrt", "10.13.0", "SM89")
    assert EngineCache(folder).find(key) is None, "half an engine was taken"
    assert second.poll() is None, "it did not wait"
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    assert second.communicate(timeout=60)[0].strip() == f"engine of {second.pid}"
    assert only_whole(folder), "the killed build was left behind"


def test_a_lock_of_a_dead_process_holds_nobody_up(start, tmp_path):
    folder, scratch = tmp_path / "engines", tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "go").touch()
    first = start(folder, scratch, 3600)
    until((scratch / "builds").exists)
    first.kill()
    first.wait(30)
    key = EngineKey("0" * 64, "tensorrt", "10.13.0", "SM89")
    assert (folder / f".{key.digest}.lock").read_text() == str(first.pid)
    assert EngineCache(folder).get_or_build(key, builder(b"whole")).read_bytes() == b"whole"
    assert only_whole(folder)


def test_threads_build_once(cache):
    together, builds = threading.Barrier(4), []

    def build(out, progress):
        builds.append(out)
        time.sleep(0.2)
        out.write_bytes(b"engine")

    def ask():
        together.wait(30)
        cache.get_or_build(KEY, build)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(builds) == 1
    assert cache.find(KEY) is not None


@pytest.mark.parametrize("error", [BackendError("the parser says no"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(cache, error):
    def build(out, progress):
        out.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        cache.get_or_build(KEY, build)
    assert only_whole(cache.folder)
    assert cache.find(KEY) is None
    assert cache.get_or_build(KEY, builder()).read_bytes() == b"engine"


def test_a_build_that_writes_nothing(cache):
    with pytest.raises(BackendError, match=r"wrote no engine; run it again$"):
        cache.get_or_build(KEY, lambda out, progress: None)
    assert cache.find(KEY) is None


def test_a_full_disk(cache):
    def build(out, progress):
        out.symlink_to("/dev/full")  # where every write fails as on a full disk
        out.write_bytes(b"engine")

    with pytest.raises(ArtifactError, match=r"^cannot write .*: No space left on device; nothing was changed"):
        cache.get_or_build(KEY, build)
    assert only_whole(cache.folder)
    assert cache.find(KEY) is None


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"^cannot write .*file"):
        EngineCache(tmp_path / "file").get_or_build(KEY, builder())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"engi", r"engine has 4 bytes; expected 6; delete it and build it again: l2r2 export BUNDLE --build$"),
        (b"", r"engine has 0 bytes; expected 6"),
        (b"engime", r"engine has changed: sha256 [0-9a-f]{12}…; expected [0-9a-f]{12}…"),
        (None, r"engine cannot be read \(No such file or directory\)"),
    ],
    ids=["truncated", "empty", "tampered", "missing"],
)
def test_an_engine_that_is_not_whole(cache, engine, data, message):
    engine.unlink()
    if data is not None:
        engine.write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        cache.find(KEY)
    with pytest.raises(ArtifactError, match=message):
        cache.get_or_build(KEY, never)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"engine\.json cannot be read"),
        ("{", r"engine\.json is no header of an engine: "),
        ("[]", r"engine\.json is no header of an engine: "),
        ('{"key": {"pins": []}, "bytes": 6, "sha256": ""}', r"engine\.json is no header of an engine: "),
    ],
)
def test_a_header_that_is_none(cache, engine, text, message):
    place = engine.parent / "engine.json"
    place.unlink()
    if text is not None:
        place.write_text(text)
    with pytest.raises(ArtifactError, match=message):
        cache.find(KEY)


@pytest.mark.parametrize(
    ("field", "value"), [("architecture", "SM86"), ("version", "10.14.1"), ("model", "f" * 64), ("precision", "int8")]
)
def test_an_engine_in_the_place_of_another(cache, engine, field, value):
    other = replace(KEY, **{field: value})
    shutil.copytree(engine.parent, cache.folder / other.digest)
    with pytest.raises(ArtifactError, match=rf"is for {field} '{getattr(KEY, field)}'; expected '{value}'; delete it"):
        cache.find(other)


def test_an_engine_of_another_gpu_or_version(engine):
    assert check_engine(engine, architecture="SM89", version="10.13.0") == KEY
    with pytest.raises(ArtifactError, match=r"engine is for architecture 'SM89'; expected 'SM75'"):
        check_engine(engine, architecture="SM75")
    with pytest.raises(ArtifactError, match=r"engine is for version '10\.13\.0'; expected '11\.0\.0'"):
        check_engine(engine, version="11.0.0")


@pytest.mark.parametrize(
    "shapes",
    [((1, 3), (1, 3), (1,)), ((2, 3), (1, 3), (4, 3)), ((1, 3), (8, 3), (4, 3)), ((0, 3), (1, 3), (4, 3))],
)
def test_shapes_that_are_no_profile(shapes):
    with pytest.raises(ConfigError, match=r"are no profile; expected the same number of axes and 1 <= min <= opt"):
        ShapeRange(*shapes)


def test_a_profile_of_batches():
    profile = ShapeProfile.of_batches({"view": ["n", 3, 8, 8], "scale": [1, 2]}, 1, 4, 8)
    assert profile.inputs["view"] == ShapeRange((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))
    assert profile.inputs["scale"] == ShapeRange((1, 2), (1, 2), (1, 2))
    assert str(profile) == "scale:1x2..1x2..1x2;view:1x3x8x8..4x3x8x8..8x3x8x8"


def test_a_profile_of_batches_of_a_model_with_other_free_axes():
    with pytest.raises(ConfigError, match=r"^view has free axes besides the batch: \['n', 3, 'h', 'w'\]"):
        ShapeProfile.of_batches({"view": ["n", 3, "h", "w"]})
