"""A new version is loaded, warmed and swapped in under load; a bad one is refused; the old one goes."""

import asyncio
import errno
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from l2r2.bundle import Bundle, load_bundle
from l2r2.errors import ConfigError
from l2r2.tracking import Store
from l2r2_serving import watching
from l2r2_serving.bundles import find_bundle, latest
from l2r2_serving.errors import UnknownBundle
from l2r2_serving.inference import grpc_predict_v2_pb2_grpc
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.watching import BundleWatcher
from tests.serving.kserving import asking
from tests.serving.running import PATIENCE_S, Running, running
from tests.tiny import GREEN, RED, encode, make_photo, make_tiny_bundle

PHOTO = encode(make_photo(RED))
REQUEST = pb.RecognizeRequest(image=PHOTO)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """The tiny bundle and another of its name: made at another time, so of another version."""
    folder = tmp_path_factory.mktemp("versions")
    return [make_tiny_bundle(folder / f"v{n}", created=f"2025-01-0{n}T00:00:00Z") for n in (1, 2)]


def place_at(folder: Path, bundle: Bundle) -> Path:
    """Put a bundle where it is watched, by renames, as anybody should."""
    beside, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(bundle.folder, beside)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    return folder


def look(watcher: BundleWatcher, place: Running) -> None:
    async def once() -> None:
        with ThreadPoolExecutor(1) as pool:
            await watcher.look(place.server, pool)

    place.run(once())


class Watched:
    """A folder that is served and watched."""

    def __init__(self, folder: Path, bundle: Bundle, every_s: float = 0.01) -> None:
        self.folder = place_at(folder / "served", bundle)
        self.bundle = load_bundle(self.folder)
        self.swaps: list[tuple[str, bool]] = []
        self.watcher = BundleWatcher(
            "tiny", str(self.folder), None, every_s, latest(str(self.folder)), lambda *swap: self.swaps.append(swap)
        )


def version_of(place: Running) -> str:
    with place.stub() as stub:
        return stub.Recognize(REQUEST).bundle.version


def test_a_new_version_takes_the_place_of_the_old(versions: list[Bundle], tmp_path: Path) -> None:
    watched = Watched(tmp_path, versions[0])
    with running(watched.bundle) as place:
        models = weakref.ref(next(iter(place.server.bundles()[0].recognizer.classifiers.values())))
        look(watched.watcher, place)
        assert (version_of(place), watched.swaps) == (versions[0].version, [])
        place_at(watched.folder, versions[1])
        look(watched.watcher, place)
        assert (version_of(place), watched.swaps) == (versions[1].version, [("tiny", False)])
        gc.collect()
        assert models() is None, "the old models are still held"


@pytest.mark.parametrize("damage", ["model", "manifest", "name", "gone"])
def test_a_bad_version_is_refused_once_and_the_old_serves_on(
    damage: str, versions: list[Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, versions[0])
    with running(watched.bundle) as place, caplog.at_level(logging.WARNING, "l2r2_serving"):
        if damage == "name":
            place_at(watched.folder, make_tiny_bundle(tmp_path / "other", name="other"))
        else:
            place_at(watched.folder, versions[1])
            if damage == "model":
                (watched.folder / versions[1].manifest.reference.models["FG"].file).write_bytes(b"no model")
            elif damage == "manifest":
                (watched.folder / "manifest.json").write_text("{}")
            else:
                shutil.rmtree(watched.folder)
        for _ in range(3):
            look(watched.watcher, place)
        assert version_of(place) == versions[0].version
        # What is not there cannot be looked at, and may come back: that is no version to refuse.
        assert watched.swaps == ([] if damage == "gone" else [("tiny", True)])
        assert len(caplog.records) == (3 if damage == "gone" else 1)
        assert ("serves on" in caplog.text) is True
        place_at(watched.folder, versions[1])
        look(watched.watcher, place)
        assert version_of(place) == versions[1].version


def test_swapped_fifty_times_under_load_no_call_fails(versions: list[Bundle], tmp_path: Path) -> None:
    watched = Watched(tmp_path, versions[0])
    with running(watched.bundle, max_queue=16) as place:
        seen: list[str] = []
        done = threading.Event()

        def single(stub: Any) -> str:
            response = stub.Recognize(REQUEST, timeout=PATIENCE_S)
            assert response.candidates[0].name == "red"
            return str(response.bundle.version)

        def batch(stub: Any) -> str:
            results = stub.BatchRecognize(pb.BatchRecognizeRequest(requests=[REQUEST] * 3), timeout=PATIENCE_S).results
            assert [each.response.candidates[0].name for each in results] == ["red"] * 3
            return str(results[0].response.bundle.version)

        def stream(stub: Any) -> str:
            items = (pb.StreamRecognizeRequest(id=str(number), request=REQUEST) for number in range(5))
            answers = list(stub.StreamRecognize(items, timeout=PATIENCE_S))
            assert sorted(each.id for each in answers) == list("01234")
            return str(answers[0].response.bundle.version)

        def call(how: Callable[[Any], str]) -> None:
            with place.stub() as stub:
                while not done.is_set():
                    seen.append(how(stub))

        def stage() -> None:
            with place.channel() as channel:
                stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
                while not done.is_set():
                    seen.append(stub.ModelInfer(asking(), timeout=PATIENCE_S).model_version)

        with ThreadPoolExecutor(4) as pool:
            callers = [*(pool.submit(call, how) for how in (single, batch, stream)), pool.submit(stage)]
            try:
                for turn in range(50):
                    place_at(watched.folder, versions[(turn + 1) % 2])
                    look(watched.watcher, place)
            finally:
                done.set()
            for caller in callers:
                caller.result(PATIENCE_S)
        assert watched.swaps == [("tiny", False)] * 50
        assert set(seen) == {version.version for version in versions}
        assert len(seen) > 100


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A real registry. MLflow keeps the last one in a global and in the environment."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    yield Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_an_alias_that_moves_is_followed(versions: list[Bundle], store: Store, tmp_path: Path) -> None:
    alias, swaps = "models:/tiny@champion", []

    def register(bundle: Bundle) -> None:
        with store.run("tests", "a run", {}) as run:
            store.register(bundle, run.id, "tiny")

    register(versions[0])
    watcher = BundleWatcher("tiny", alias, store.uri, 0.01, latest(alias, store.uri), lambda *swap: swaps.append(swap))
    with running(find_bundle(alias, store.uri)) as place:
        look(watcher, place)
        assert (version_of(place), swaps) == (versions[0].version, [])
        register(versions[1])
        kept = store.fetch(alias)
        away = kept.rename(tmp_path / "away")  # the registry knows the version, but it cannot be fetched now
        look(watcher, place)
        assert (version_of(place), swaps) == (versions[0].version, [])
        away.rename(kept)
        look(watcher, place)
        assert (version_of(place), swaps) == (versions[1].version, [("tiny", False)])
        store.client.set_registered_model_alias("tiny", "champion", "1")
        look(watcher, place)
        assert (version_of(place), swaps) == (versions[0].version, [("tiny", False)] * 2)
        store.client.delete_registered_model_alias("tiny", "champion")
        look(watcher, place)
        assert (version_of(place), swaps) == (versions[0].version, [("tiny", False)] * 2)


def test_it_looks_by_itself(versions: list[Bundle], tmp_path: Path) -> None:
    watched = Watched(tmp_path, versions[0])
    with running(watched.bundle) as place:
        task = asyncio.run_coroutine_threadsafe(watched.watcher.run(place.server), place.loop)
        place_at(watched.folder, versions[1])
        for _ in range(1000):
            if version_of(place) == versions[1].version:
                break
        assert version_of(place) == versions[1].version
        task.cancel()


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), RuntimeError("the registry is away"), IndexError("list index"), OSError(errno.ENOSPC, "No space")],
)
def test_whatever_a_look_meets_the_next_one_is_made(
    error: Exception,
    versions: list[Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_place: object) -> str:
        raise error

    watched = Watched(tmp_path, versions[0])
    with running(watched.bundle) as place:
        place_at(watched.folder, versions[1])
        with monkeypatch.context() as changed, caplog.at_level(logging.WARNING, "l2r2_serving"):
            changed.setattr(watching, "latest", broken)
            look(watched.watcher, place)
        (line,) = caplog.messages
        assert line.endswith(f"cannot be looked at, the bundle serves on: {error or 'TimeoutError'}")
        look(watched.watcher, place)
        assert version_of(place) == versions[1].version


def test_a_registry_that_hangs_does_not_hold_up_a_stop(
    versions: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, answers = threading.Event(), threading.Event()

    def hangs(*_place: object) -> str:
        hanging.set()
        assert answers.wait(PATIENCE_S)
        return "nothing"

    monkeypatch.setattr(watching, "latest", hangs)
    watched = Watched(tmp_path, versions[0], every_s=0.001)
    with running(watched.bundle) as place:
        task = asyncio.run_coroutine_threadsafe(watched.watcher.run(place.server), place.loop)
        assert hanging.wait(PATIENCE_S)
        task.cancel()
        with place.stub() as stub:
            assert stub.Recognize(REQUEST, timeout=PATIENCE_S).candidates[0].name == "red"
        assert not answers.is_set()
        answers.set()


def test_several_bundles_by_name(versions: list[Bundle], tmp_path: Path) -> None:
    other = make_tiny_bundle(tmp_path / "other", name="other", class_names=("crimson", "lime", "navy"))
    with running(versions[0], other) as place, place.stub() as stub:
        assert stub.Recognize(pb.RecognizeRequest(image=PHOTO, bundle="tiny")).candidates[0].name == "red"
        green = pb.RecognizeRequest(image=encode(make_photo(GREEN)), bundle="other")
        assert stub.Recognize(green).candidates[0].name == "lime"
        with place.client() as client, pytest.raises(UnknownBundle, match="expected one of: other, tiny"):
            client.recognize(PHOTO)
        assert [each.name for each in stub.ListBundles(pb.ListBundlesRequest()).bundles] == ["other", "tiny"]
        with place.channel() as channel:
            for name in ("", "l2r2.v1.RecognitionService", "l2r2.v1.RecognitionService/other"):
                asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
                assert asked.status == health_pb2.HealthCheckResponse.SERVING


def test_two_of_one_name_are_refused(versions: list[Bundle]) -> None:
    with pytest.raises(ConfigError, match="2 bundles are named 'tiny'"), running(*versions):
        pass
