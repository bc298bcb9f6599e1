"""Callers that are slow, idle or gone, a killed server, a clock that jumps, a full disk: the service goes on."""

import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from l2r2.bundle import Bundle
from l2r2_serving.answer import Answer
from l2r2_serving.calling import Retries
from l2r2_serving.client import Client
from l2r2_serving.observing import Call, Nobody
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc
from tests.serving.running import PATIENCE_S, ChangedBundle, GatedLocalizer, Running, eventually, running
from tests.serving.wire import RawCaller, message
from tests.tiny import GREEN, RED, encode, make_photo

PROMPTLY_S = 20.0
"""How soon a good request is answered whatever others do; generous, for machines that are busy."""

COLOURS = ("red", "green")
PHOTOS = {"red": encode(make_photo(RED)), "green": encode(make_photo(GREEN))}
REQUEST = pb.RecognizeRequest(image=PHOTOS["red"])
ITEM = pb.StreamRecognizeRequest(id="a", request=REQUEST)

CLOCK_THAT_JUMPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static long day(void) {
  static const long days[] = {0, 3650, -1, 0, -3650};
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 86400 * days[(now.tv_sec * 4 + now.tv_nsec / 250000000) % 5];
}
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*asked)(clockid_t, struct timespec *);
  if (!asked) asked = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int failed = asked(clock, now);
  if (!failed && clock == CLOCK_REALTIME) now->tv_sec += day();
  return failed;
}
"""
"""The system's clock as a process sees it, its Python and its gRPC alike: four jumps a second, of up to ten years."""

FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
"""No file can grow: every write fails, as with a full disk, though with another errno (EFBIG)."""

L2R2 = "import runpy, sys; sys.argv[0] = 'l2r2'; runpy.run_module('l2r2', run_name='__main__', alter_sys=True)"


def is_well(place: Running) -> None:
    """A good request is answered promptly and all slots are free."""
    with place.stub() as stub:
        assert stub.Recognize(REQUEST, timeout=PROMPTLY_S).candidates[0].name == "red"
    eventually(lambda: place.server.slots.taken == 0)


@contextmanager
def process(bundle: Bundle, *words: str, before: str = "", log: Path | None = None) -> Iterator[tuple[str, int]]:
    """Address and process id of a served bundle; `before` runs first in it."""
    command = [sys.executable, "-c", f"{before}\n{L2R2}", "serve", str(bundle.folder), "--workers", "1", *words]
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("wb")) if log else None
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True))
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split("ready on ")[1].split(",")[0], server.pid
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE_S)
        finally:
            server.kill()


def test_who_reads_slowly_holds_no_slot_and_loses_nothing(bundle: Bundle) -> None:
    counted, names = ChangedBundle(bundle, GatedLocalizer), [f"item-{number:03}" for number in range(120)]
    request = pb.RecognizeRequest(image=PHOTOS["red"], thumbnail_px=512)
    items = [pb.StreamRecognizeRequest(id=name, request=request).SerializeToString() for name in names]
    assert sum(map(len, items)) < 2**16  # may be sent without waiting for HTTP/2's window
    with running(counted) as place, RawCaller(place.address) as slow:
        before = counted.localizer.reached
        slow.begin("StreamRecognize")
        for each in items:
            slow.send(message(each), last=each is items[-1])
        done = -1
        while done < counted.localizer.reached:  # until nothing moves
            done = counted.localizer.reached
            time.sleep(0.7)
        assert done < before + len(names)
        is_well(place)
        slow.widen(2**20)
        heard = slow.data()
        assert len(heard) > 2**17  # and more than may be sent before the caller reads
        assert all(heard.count(name.encode()) == 1 for name in names)
        is_well(place)


def test_who_sends_slowly_holds_no_slot_and_is_answered(bundle: Bundle) -> None:
    whole = message(REQUEST.SerializeToString())
    with running(bundle) as place, ExitStack() as stack:
        callers = [stack.enter_context(RawCaller(place.address)) for _ in range(40)]
        for caller in callers:
            caller.begin("Recognize")
        for part in range(20):
            for caller in callers:
                caller.send(whole[part : part + 1])
            time.sleep(0.02)
        assert place.server.slots.taken == 0
        is_well(place)
        for caller in callers[:4]:
            caller.send(whole[20:], last=True)
            assert caller.heard(b"red")
        is_well(place)


@pytest.mark.parametrize("method", ["Recognize", "StreamRecognize"])
def test_who_vanishes_in_the_middle_of_a_message(method: str, bundle: Bundle) -> None:
    whole, rng = message((REQUEST if method == "Recognize" else ITEM).SerializeToString()), random.Random(0)
    with running(bundle) as place:
        for _ in range(100):
            caller = RawCaller(place.address)
            caller.begin(method)
            caller.send(whole[: rng.randrange(len(whole))])
            caller.vanish()
        is_well(place)


def test_who_vanishes_in_the_middle_of_a_stream(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=2) as place:
        held.localizer.gate.clear()
        before = held.localizer.reached
        callers = [RawCaller(place.address) for _ in range(20)]
        for caller in callers:
            caller.begin("StreamRecognize")
            caller.send(message(ITEM.SerializeToString()))
        eventually(lambda: place.server.slots.taken == 2 and held.localizer.reached == before + 1)
        for caller in callers:
            caller.vanish()
        eventually(lambda: place.server.slots.taken == 0)
        held.localizer.gate.set()
        is_well(place)
        assert held.localizer.reached == before + 2  # nothing was done for the nineteen that waited


class Ends(Nobody):
    """Counts how calls of streams ended."""

    def __init__(self) -> None:
        self.codes = Counter[str]()

    def call(self, call: Call) -> None:
        if call.method.endswith("/StreamRecognize"):
            self.codes[call.code] += 1


def test_who_vanishes_while_answers_wait_for_it(bundle: Bundle) -> None:
    request = pb.RecognizeRequest(image=PHOTOS["red"], thumbnail_px=512)
    with running(bundle) as place:
        callers = [RawCaller(place.address) for _ in range(4)]
        for caller in callers:
            caller.begin("StreamRecognize")
            for number in range(120):
                caller.send(message(pb.StreamRecognizeRequest(id=str(number), request=request).SerializeToString()))
        time.sleep(1.0)  # by now more is answered than may be sent to one that does not read
        for caller in callers:
            caller.vanish()
        is_well(place)


def test_who_cancels_while_answers_are_sent_is_no_failure(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    ends, tries = Ends(), 100  # one in fifteen or less meets an answer that is just being sent
    request = pb.RecognizeRequest(image=PHOTOS["red"], thumbnail_px=512)
    with running(bundle, observer=ends) as place:
        for number in range(tries):
            with place.stub() as stub:
                call = stub.StreamRecognize(
                    pb.StreamRecognizeRequest(id=str(each), request=request) for each in range(300)
                )
                next(call)
                time.sleep(0.01 * (number % 5))
                call.cancel()
        is_well(place)
        eventually(lambda: ends.codes.total() == tries)
    assert ends.codes == {"CANCELLED": tries}
    assert not caplog.records


def test_a_thousand_idle_connections(bundle: Bundle) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * 1000 + 256  # both ends are in this process
    if hard not in {resource.RLIM_INFINITY} and hard < wanted:
        pytest.skip(f"{hard} open files are allowed here; {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with running(bundle) as place, ExitStack() as stack:
            idle = [stack.enter_context(RawCaller(place.address)) for _ in range(1000)]
            # Some of them have a call open, too, and say nothing.
            for caller in idle[:64]:
                caller.begin("StreamRecognize")
            assert all(caller.socket.recv(9) for caller in idle)  # the server's settings: each is really connected
            began = time.monotonic()
            is_well(place)
            assert time.monotonic() - began < PROMPTLY_S
        with running(bundle) as place:
            is_well(place)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_killed_and_started_again_under_load_each_photograph_is_answered_once(bundle: Bundle) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, retries = f"127.0.0.1:{port}", Retries(most=1000, longest_s=0.3)
    over, answered, streamed = threading.Event(), Counter[int](), Counter[str]()

    def single(caller: int) -> None:
        """Numbers of its own, one after the other."""
        with Client(address, timeout_s=4 * PATIENCE_S, retries=retries) as client:
            number = caller
            while not over.is_set():
                answer = client.recognize(PHOTOS[COLOURS[number % 2]])
                assert answer.prediction.answer.name == COLOURS[number % 2]
                answered[number] += 1
                number += 4

    asked: list[str] = []

    def queue() -> Iterator[tuple[str, bytes, dict[str, str]]]:
        while not over.is_set():
            asked.append(str(len(asked)))
            yield asked[-1], PHOTOS[COLOURS[int(asked[-1]) % 2]], {}

    def stream() -> None:
        with Client(address, retries=retries) as client:
            for each in client.recognize_stream(queue()):
                assert isinstance(each.result, Answer)
                assert each.result.prediction.answer.name == COLOURS[int(each.id) % 2]
                streamed[each.id] += 1

    with ThreadPoolExecutor(5) as pool:
        work = [pool.submit(single, caller) for caller in range(4)] + [pool.submit(stream)]
        try:
            for life in range(3):
                with process(bundle, "--port", str(port)) as (_, server):
                    goal = answered.total() + 50, streamed.total() + 50

                    def loaded(goal: tuple[int, int] = goal) -> bool:
                        for each in work:
                            if each.done():
                                each.result()
                        return answered.total() > goal[0] and streamed.total() > goal[1]

                    eventually(loaded, 4 * PATIENCE_S)
                    if life == 2:
                        over.set()
                        for each in work:
                            each.result(PATIENCE_S)
                    else:
                        subprocess.run(["kill", "-9", str(server)], check=True)
        finally:
            over.set()
    assert set(answered.values()) == {1}
    assert streamed == Counter(asked)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs a C compiler, on Linux")
def test_a_clock_that_jumps_changes_no_deadline(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, clock = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK_THAT_JUMPS, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(clock), str(source), "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(clock))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    request = pb.RecognizeRequest(image=encode(noise, "JPEG", quality=90))  # long enough to see a jump
    saying = f"import time\nwhile abs(time.time() - {time.time()!r}) < 86400: time.sleep(0.01)"
    with process(bundle, "--port", "0", "--max-queue", "1", before=saying) as (address, _):  # it really jumps there
        with grpc.insecure_channel(address) as channel:
            stub = recognition_pb2_grpc.RecognitionServiceStub(channel)
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                response = stub.Recognize(request, timeout=PROMPTLY_S)
                assert not response.degraded
                assert all(0 <= each.latency_ms < 1000 * PROMPTLY_S for each in response.latencies)
        with Client(address) as client:
            items = ((str(number), PHOTOS["red"], {}) for number in range(50))
            assert len(list(client.recognize_stream(items))) == 50


def test_a_full_disk_does_not_stop_the_service(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("--port", "0", "--max-queue", "1", "--log-level", "info")
    with process(bundle, *words, before=FULL_DISK, log=log) as (address, _), Client(address) as client:
        for number in range(50):
            colour = COLOURS[number % 2]
            assert client.recognize(PHOTOS[colour]).prediction.answer.name == colour
        with suppress(ValueError):  # what cannot be used is logged nowhere, either
            client.recognize(b"text")
        assert client.recognize(PHOTOS["red"]).prediction.answer.name == "red"
    assert log.read_bytes() == b""  # where each call's line would be: the disk was full indeed
