"""Several processes on one port: all answer, one that dies is started again, a stop loses nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import grpc
import pytest

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2_serving.calling import Retries
from l2r2_serving.client import Client
from l2r2_serving.processes import Processes, reserved
from l2r2_serving.settings import ServerSettings
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc
from tests.serving.running import PATIENCE_S, eventually
from tests.tiny import RED, encode, make_photo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SO_REUSEPORT spreads connections on Linux alone")

PHOTO = encode(make_photo(RED))
REQUEST = pb.RecognizeRequest(image=PHOTO)
SERVE = [sys.executable, "-m", "l2r2", "serve"]
PATIENT = Retries(most=20)


class Several:
    """`l2r2 serve --processes 2` as a user starts it."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        assert process.stdout is not None
        self.line = process.stdout.readline()
        assert self.line, log.read_text()
        self.address = self.line.split("ready on ")[1].split(",")[0]

    def servers(self) -> set[int]:
        """Ids of the processes that listen: the parent's children but for the one that multiprocessing keeps."""
        return {pid for pid in children(self.process.pid) if b"spawn_main" in command(pid)}

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextmanager
def several(bundle: Bundle, log: Path, *words: str) -> Iterator[Several]:
    arguments = [*SERVE, str(bundle.folder), "--port", "0", "--workers", "1", "--processes", "2", *words]
    with (
        log.open("w") as errors,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield Several(process, log)
        finally:
            process.kill()  # the servers follow their parent


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def gone(pid: int) -> bool:
    return not command(pid)


def connections(address: str, wanted: Callable[[recognition_pb2_grpc.RecognitionServiceStub], None], n: int) -> None:
    """Do something over each of n connections of its own."""
    for _ in range(n):
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            wanted(recognition_pb2_grpc.RecognitionServiceStub(channel))


def test_all_answer_on_one_port_and_leave_on_a_signal(bundle: Bundle, tmp_path: Path) -> None:
    with several(bundle, tmp_path / "log", "--log-level", "info", "--log-format", "json") as place:
        assert place.line.endswith(f"bundle tiny {bundle.version}, onnxruntime/fp32, 2 processes\n")
        servers = place.servers()
        assert len(servers) == 2
        port = int(place.address.rpartition(":")[2])
        assert len(listening(port)) == 2
        versions = []
        connections(place.address, lambda stub: versions.append(stub.Recognize(REQUEST).bundle.version), 8)
        assert versions == [bundle.version] * 8
        place.process.send_signal(signal.SIGTERM)
        assert place.ended() == 0
        assert all(gone(pid) for pid in servers)
        assert len(calls(place.log)) == 8


def listening(port: int) -> list[str]:
    """Sockets that listen there, as the kernel says."""
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]  # gRPC's sockets are for both
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return [row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"]


def calls(log: Path) -> list[str]:
    """How the calls that were begun have ended."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["message"].split()[-1] for line in lines if line["logger"] == "l2r2_serving.access"]


@pytest.mark.parametrize("drain", ["0", "0.5"])
def test_a_stop_under_load_loses_no_call_that_was_begun(drain: str, bundle: Bundle, tmp_path: Path) -> None:
    words = ["--log-level", "info", "--log-format", "json", "--drain-s", drain]
    with several(bundle, tmp_path / "log", *words) as place:
        stopped = Event()
        heard: list[list[grpc.StatusCode]] = [[] for _ in range(4)]

        def call(codes: list[grpc.StatusCode]) -> None:
            """Until the server is gone, on a connection of its own; how each call ended."""
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            with grpc.insecure_channel(place.address, options=options) as channel:
                stub = recognition_pb2_grpc.RecognitionServiceStub(channel)
                while not stopped.is_set() or codes[-1] is grpc.StatusCode.OK:
                    try:
                        stub.Recognize(REQUEST, timeout=PATIENCE_S)
                        codes.append(grpc.StatusCode.OK)
                    except grpc.RpcError as error:
                        codes.append(error.code())

        with ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(call, codes) for codes in heard]
            eventually(lambda: all(len(codes) > 5 for codes in heard))
            place.process.send_signal(signal.SIGTERM)
            stopped.set()
            for caller in callers:
                caller.result(PATIENCE_S)
        codes = [code for each in heard for code in each]
        assert place.ended() == 0
        begun = calls(place.log)
        # CANCELLED is gRPC's own word for what it had taken and never gave to the service.
        ends = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert ends <= set(codes) <= {*ends, grpc.StatusCode.CANCELLED}
        # Whatever the service began it ended well, and each of these answers arrived.
        assert set(begun) == {"OK"}
        assert len(begun) == codes.count(grpc.StatusCode.OK) > 20


def test_one_that_is_killed_is_started_again_and_no_answer_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    with several(bundle, tmp_path / "log") as place:
        before, done = place.servers(), Event()

        def call() -> int:
            answered = 0
            with Client(place.address, retries=PATIENT) as client:
                while not done.is_set():
                    assert client.recognize(PHOTO).prediction.answer.name == "red"
                    answered += 1
            return answered

        def look() -> set[grpc.StatusCode]:
            """On new connections, so that the new process is asked too, as soon as it listens; nothing tried again."""
            codes = set()
            while not done.is_set():
                try:
                    connections(place.address, lambda stub: stub.Recognize(REQUEST), 1)
                    codes.add(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.add(error.code())
            return codes

        with ThreadPoolExecutor(4) as pool:
            callers, looking = [pool.submit(call) for _ in range(3)], pool.submit(look)
            try:
                killed = min(before)
                os.kill(killed, signal.SIGKILL)
                port = int(place.address.rpartition(":")[2])
                eventually(lambda: len(place.servers() - before) == 1 and len(listening(port)) == 2)
                time.sleep(1.0)  # the new one is asked too
            finally:
                done.set()
            assert all(caller.result(PATIENCE_S) > 0 for caller in callers)
            # What was lost with the one that was killed, but never that a process is not ready yet.
            assert looking.result(PATIENCE_S) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert place.servers() & before == before - {killed}
        assert f"server process {killed} ended with signal 9 and is started again" in place.log.read_text()
        place.process.send_signal(signal.SIGTERM)
        assert place.ended() == 0


def test_those_that_die_again_and_again_are_given_up(bundle: Bundle, tmp_path: Path) -> None:
    with several(bundle, tmp_path / "log") as place:
        end = time.monotonic() + PATIENCE_S
        while place.process.poll() is None and time.monotonic() < end:
            for pid in list(place.servers())[:1]:
                with suppress(ProcessLookupError):  # its parent was sooner
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        assert place.ended() == 1
        said = place.log.read_text().splitlines()
        assert said[-1].startswith("l2r2: error: 6 server processes died within 60 s, the last with signal 9")
        assert sum("is started again" in line for line in said) == 5


def test_they_leave_when_their_parent_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    with several(bundle, tmp_path / "log") as place:
        servers = place.servers()
        place.process.kill()
        eventually(lambda: all(gone(pid) for pid in servers))


def test_what_is_wrong_is_said_once(tmp_path: Path, bundle: Bundle) -> None:
    done = subprocess.run(
        [*SERVE, str(tmp_path), "--port", "0", "--processes", "2"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"l2r2: error: {tmp_path} is no bundle")


def test_a_port_is_ours_alone_and_shared_among_ours() -> None:
    with reserved("127.0.0.1", 0) as port:
        assert not listening(port)
        taken = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        with pytest.raises(ConfigError, match=taken), reserved("127.0.0.1", port):
            pass
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", port))
    with reserved("127.0.0.1", port) as again:
        assert again == port


def test_elsewhere_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="3 processes on one port need Linux, this is darwin"):
        Processes(ServerSettings(processes=3), lambda _settings, _ready: None)


def test_each_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2r2_serving.settings.available_cores", lambda: 8)
    assert ServerSettings(processes=3).worker_count == 2
    assert ServerSettings(processes=16).worker_count == 1
    assert ServerSettings(processes=3, workers=5).worker_count == 5
    assert ServerSettings().for_batch(1).worker_count == 8
    assert ServerSettings().for_batch(16).worker_count == 32
    assert ServerSettings(workers=3).for_batch(16).worker_count == 3
