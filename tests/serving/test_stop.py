"""A stop lets what is in flight finish, refuses the rest, and ends."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from l2r2.bundle import Bundle
from l2r2.errors import ServingError
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc
from tests.serving.running import PATIENCE_S, ChangedBundle, GatedLocalizer, eventually, running
from tests.serving.wire import RawCaller, message
from tests.tiny import RED, encode, make_photo

ROOT = Path(__file__).parents[2]
REQUEST = pb.RecognizeRequest(image=encode(make_photo(RED)))

HELD_SERVER = """
import asyncio, os, sys
from pathlib import Path
from l2r2 import load_bundle
from l2r2_serving.server import serve
from l2r2_serving.settings import ServerSettings
from tests.serving.running import ChangedBundle, GatedLocalizer, eventually

class HeldLocalizer(GatedLocalizer):
    def locate(self, photos):
        if serving or sys.argv[3] == "warming":
            os.write(1, b"locating\\n")  # one call a line: two threads warm up at once
            eventually(Path(sys.argv[2]).exists)
        return super().locate(photos)

serving = []

def ready(address):
    serving.append(address)
    print(address, flush=True)

asyncio.run(serve([ChangedBundle(load_bundle(Path(sys.argv[1])), HeldLocalizer)], ServerSettings(port=0), ready))
print("stopped", flush=True)
"""


def test_in_flight_is_answered_and_new_is_refused(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        call = stub.Recognize.future(REQUEST)
        eventually(lambda: held.localizer.reached == before + 1)
        stopping = asyncio.run_coroutine_threadsafe(place.server.stop(PATIENCE_S), place.loop)

        def is_refused() -> bool:
            try:
                with place.client(timeout_s=1.0) as client:
                    client.recognize(b"")
            except ServingError as error:
                return type(error) is ServingError
            except ValueError:
                return False
            return False

        eventually(is_refused)
        assert not stopping.done()
        held.localizer.gate.set()
        assert call.result().candidates[0].name == "red"
        stopping.result(PATIENCE_S)


def test_health_says_so_before_calls_are_refused(bundle: Bundle) -> None:
    with running(bundle, drain_s=5.0) as place, place.channel() as channel, place.stub() as stub:
        assert stub.Recognize(REQUEST).candidates[0].name == "red"
        health = health_pb2_grpc.HealthStub(channel)
        stopping = asyncio.run_coroutine_threadsafe(place.server.stop(), place.loop)
        request = health_pb2.HealthCheckRequest(service="")
        eventually(lambda: health.Check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert stub.Recognize(REQUEST).candidates[0].name == "red"
        assert not stopping.done()
        stopping.result(PATIENCE_S)
        eventually(lambda: _refuses(place.address))


def test_what_outlasts_the_grace_is_cut_off(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        call = stub.Recognize.future(REQUEST)
        eventually(lambda: held.localizer.reached == before + 1)
        stopping = asyncio.run_coroutine_threadsafe(place.server.stop(0.05), place.loop)
        assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        held.localizer.gate.set()
        stopping.result(PATIENCE_S)


def test_a_health_watcher_does_not_hold_the_server(bundle: Bundle) -> None:
    with running(bundle) as place, place.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        # The grace is longer than this test may last: only the watcher is left, and it is not waited for.
        place.run(place.server.stop(3600.0))
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_what_is_on_its_way_or_waits_in_a_stream_is_answered_too(bundle: Bundle) -> None:
    """Neither has a slot when the stop comes."""
    held = ChangedBundle(bundle, GatedLocalizer)
    whole = message(REQUEST.SerializeToString())
    with running(held, workers=1, max_queue=1) as place, place.stub() as stub, RawCaller(place.address) as caller:
        items = [pb.StreamRecognizeRequest(id=name, request=REQUEST) for name in "ab"]
        caller.begin("Recognize")
        caller.send(whole[:50])
        held.localizer.gate.clear()
        before, never = held.localizer.reached, threading.Event()

        def sent() -> Iterator[pb.StreamRecognizeRequest]:
            yield from items
            never.wait(PATIENCE_S)

        stream = stub.StreamRecognize(sent())
        eventually(lambda: held.localizer.reached == before + 1)
        eventually(lambda: bool(place.server.slots._waiting))
        stopping = asyncio.run_coroutine_threadsafe(place.server.stop(PATIENCE_S), place.loop)
        eventually(lambda: _refuses(place.address))
        held.localizer.gate.set()
        assert {next(stream).id, next(stream).id} == {"a", "b"}
        caller.send(whole[50:], last=True)
        assert caller.heard(b"red")
        never.set()
        stopping.result(PATIENCE_S)


def test_a_second_signal_ends_it_at_once(bundle: Bundle, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELD_SERVER, str(bundle.folder), str(tmp_path / "never"), "serving"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with grpc.insecure_channel(address) as channel:
                call = recognition_pb2_grpc.RecognitionServiceStub(channel).Recognize.future(REQUEST)
                assert process.stdout.readline() == "locating\n"
                process.send_signal(signal.SIGINT)
                eventually(lambda: _refuses(address))
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE_S) == -signal.SIGINT
                assert call.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            process.kill()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(name: signal.Signals, bundle: Bundle, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with subprocess.Popen(
        [sys.executable, "-c", HELD_SERVER, str(bundle.folder), str(go), "serving"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with grpc.insecure_channel(address) as channel:
                call = recognition_pb2_grpc.RecognitionServiceStub(channel).Recognize.future(REQUEST)
                assert process.stdout.readline() == "locating\n"
                process.send_signal(name)
                eventually(lambda: _refuses(address))
                assert not call.done()
                go.touch()
                assert call.result().candidates[0].name == "red"
            assert process.stdout.readline() == "stopped\n"
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_a_signal_while_warming_up_ends_it_too(bundle: Bundle, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with subprocess.Popen(
        [sys.executable, "-c", HELD_SERVER, str(bundle.folder), str(go), "warming"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locating\n"
            process.send_signal(signal.SIGTERM)
            go.touch()
            said, complaints = process.communicate(timeout=PATIENCE_S)
            assert said.splitlines()[-1] == "stopped"
            assert (complaints, process.returncode) == ("", 0)
        finally:
            process.kill()


def _refuses(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
        return False
