"""Our service against each peer, in turns: requests a second and latency, same work and same task."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l2r2.bundle import load_bundle
from l2r2.datasets import load_dataset
from l2r2.machine import available_cores
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.bench.exporting import BUNDLE, DATA, WORK
from tests.bench.measure import Figure, of
from tests.bench.peers.environments import PEERS, environment

CALLERS = 16
BLOCK_S = 8.0
PAIRS = {"cascade": 5, "both": 3}
"""Blocks of each side: same work, same task."""

READY_S = 90.0
PHOTOGRAPHS = 60
REFERENCE = "onnxruntime/fp32"
FORM = "multipart/form-data; boundary=l2r2"


@dataclass(frozen=True, slots=True)
class Peer:
    """How one is started and asked.

    Attributes:
        command: After its environment's python; {port} is filled in.
        url: As `tests.bench.peers.load` takes it; {port} likewise.
        body: Photograph → what is sent.
    """

    command: tuple[str, ...]
    url: str
    content_type: str
    body: Callable[[bytes], bytes]


def compare() -> Iterator[tuple[str, Figure]]:
    """Ratios of ours to theirs, 16 callers, as many workers as cores on either side.

    Same work: the very `OpenBundle.answer` of one deployment behind each server. Same task: theirs decodes all pixels
    and always runs both classifiers on FP32 ONNX Runtime, ours is as it serves best. Both servers are up all the time;
    an idle one's own work is at the other's cost.
    """
    if not (BUNDLE.is_dir() and DATA.is_dir()):
        print("peers: no demo bundle or data here; run make demo first")
        return
    small = WORK / load_bundle(BUNDLE).version / "openvino-int8"
    bundle, deployment = (small, "openvino/int8") if small.is_dir() else (BUNDLE, REFERENCE)
    print(f"  ours, and theirs at the same work: {deployment}; theirs at the same task: {REFERENCE}, always both")
    dataset = load_dataset(DATA)
    paths = [path for name in dataset.test_sets for path in dataset.split(name).paths()]
    photographs = [path.read_bytes() for path in paths[:: max(1, len(paths) // PHOTOGRAPHS)]]
    yield "serve.task_agreement", _agreement(bundle, deployment, photographs)
    rivals: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ours = stack.enter_context(_ours(bundle, deployment))
        url = f"grpc://{ours}/l2r2.v1.RecognitionService/Recognize"
        requests = [pb.RecognizeRequest(image=photo).SerializeToString() for photo in photographs]
        our_order = _order(url, "", requests, Path(folder) / "ours")
        for name in PEERS:
            python = environment(name)
            if python is None:
                continue
            peer = _peer(name)
            bodies = [peer.body(photo) for photo in photographs]
            for task, chosen in (("cascade", deployment), ("both", REFERENCE)):
                told = {"BUNDLE": str(bundle), "DEPLOYMENT": chosen, "TASK": task}
                scratch = Path(folder) / f"{name}-{task}"
                scratch.mkdir()
                try:
                    with _theirs(name, peer, python, told, scratch, bodies[0]) as their_url:
                        their_order = _order(their_url, peer.content_type, bodies, scratch / "bodies")
                        pairs = _in_turns(our_order, their_order, PAIRS[task])
                except _NoPeerError as error:
                    print(f"  {PEERS[name]} does not run here ({task}): {error}")
                    continue
                _tell(name, task, pairs)
                if task == "cascade":
                    yield f"serve.over_{name}", _ratio(pairs)
                else:
                    rivals[name] = pairs
    if rivals:
        best = min(rivals, key=lambda name: _ratio(rivals[name])["value"])
        print(f"  best at the same task: {PEERS[best]}")
        yield "serve.task_over_best_peer", _ratio(rivals[best])
        mine, theirs = (np.concatenate([load["latencies"] for load in loads]) for loads in rivals[best])
        late = float(np.percentile(mine, 99) / np.percentile(theirs, 99))
        yield "serve.task_p99_over_best_peer", Figure(value=late, unit="×", n=len(theirs), low=late, high=late)


def _in_turns(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], pairs: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Blocks of either; who is first changes. Each is asked for a second before, untold."""
    for order in (ours, theirs):
        _load({**order, "seconds": 1.0})
    loads: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for number in range(pairs):
        for place in (0, 1) if number % 2 else (1, 0):
            loads[place].append(_load((ours, theirs)[place]))
    return loads


def _ratio(pairs: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> Figure:
    return of([mine["rate"] / theirs["rate"] for mine, theirs in zip(*pairs, strict=True)], "×")


def _quantile(load: Mapping[str, Any], percent: float) -> float:
    return float(np.percentile(load["latencies"], percent))


def _tell(name: str, task: str, pairs: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    for who, loads in zip(("ours", name), pairs, strict=True):
        rate = np.median([load["rate"] for load in loads])
        p50, p99 = (1000 * np.median([_quantile(load, percent) for load in loads]) for percent in (50, 99))
        codes = {code for load in loads for code in load["codes"]}
        print(f"  {task:8} {who:9} {rate:6.1f} photos/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {', '.join(codes)}")


class _NoPeerError(Exception):
    """A peer that does not come up, or answers with errors."""


def _load(order: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.peers.load", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if set(found["codes"]) != {"OK"}:
        raise _NoPeerError(f"{order['url']} ended with {found['codes']}")
    return found


def _order(url: str, content_type: str, bodies: list[bytes], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    files = [folder / str(number) for number in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_bytes(body)
    return {
        "url": url,
        "content_type": content_type,
        "bodies": [str(file) for file in files],
        "callers": CALLERS,
        "seconds": BLOCK_S,
    }


@contextmanager
def _ours(bundle: Path, deployment: str) -> Iterator[str]:
    """Address of our service; its queue is as long as its callers are many, as the peers' are."""
    runtime, precision = deployment.split("/")
    command = [sys.executable, "-m", "l2r2", "serve", str(bundle), "--runtime", runtime, "--precision", precision]
    command += ["--port", "0", "--max-queue", str(max(CALLERS, 8 * available_cores()))]
    # In a session of its own, as the peers: some schedulers share the machine by session.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split("ready on ")[1].split(",")[0]
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def _theirs(name: str, peer: Peer, python: Path, told: Mapping[str, str], scratch: Path, body: bytes) -> Iterator[str]:
    """The url of a peer that has answered; it and all its processes end with the block.

    Raises:
        _NoPeerError: it has not answered in time.
    """
    port, root = _free_port(), Path.cwd()
    place = {"PORT": str(port), "WORKERS": str(available_cores()), **told}
    place["BUNDLE"] = str(Path(told["BUNDLE"]).resolve())
    environ = {
        **os.environ,
        "PATH": f"{python.parent.resolve()}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join((str(root), str(root / "serving"))),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(scratch),
        "RAY_USAGE_STATS_ENABLED": "0",
        **{f"L2R2_BENCH_{key}": value for key, value in place.items()},
    }
    if name == "mlserver":
        _write_mlserver(scratch, port)
    command = [str(python.absolute()), *(word.format(port=port, root=root) for word in peer.command)]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=scratch, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        url = peer.url.format(port=port)
        order = {**_order(url, peer.content_type, [body], scratch / "first"), "callers": 1, "seconds": 0.1}
        end = time.monotonic() + READY_S
        while True:
            try:
                _load(order)
                break
            except _NoPeerError:
                if process.poll() is not None or time.monotonic() > end:
                    lines = (scratch / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    wrong = [line for line in lines if "Error" in line] or lines or ["it said nothing"]
                    raise _NoPeerError(wrong[-1]) from None
                time.sleep(0.5)
        yield url
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, and after a while no longer ask, it and all that it started, in whatever session."""
    family = _family(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member, born in family.items():
        if _stat(member)[1:] == (born,):
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)


def _family(root: int) -> dict[int, int]:
    """Descendants, by /proc: process id → when it was born, since ids are given again."""
    stats = {int(place.name): _stat(int(place.name)) for place in Path("/proc").glob("[0-9]*")}
    found, parents = {}, {root}
    while parents:
        children = {process: stat for process, stat in stats.items() if stat and stat[0] in parents}
        found.update({process: stat[1] for process, stat in children.items()})
        parents = set(children)
    return found


def _stat(process: int) -> tuple[int, ...]:
    """Parent and time of birth; empty where it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ()
    return int(fields[1]), int(fields[19])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _peer(name: str) -> Peer:
    module = "tests.bench.peers.{}_app".format("ray" if name == "rayserve" else name)
    if name == "litserve":
        return Peer(("-m", module), "http://127.0.0.1:{port}/predict", FORM, _form)
    if name == "bentoml":
        words = ("-m", "bentoml", "serve", f"{module}:Recognition", "--host", "127.0.0.1", "--port", "{port}")
        return Peer(words, "http://127.0.0.1:{port}/recognize", FORM, _form)
    if name == "mlserver":
        url = "grpc://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
        return Peer(("-c", "from mlserver.cli import main; main()", "start", "."), url, "", _infer_request)
    return Peer(("-m", module), "http://127.0.0.1:{port}/", "application/octet-stream", bytes)


def _form(photo: bytes) -> bytes:
    head = b'--l2r2\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n'
    return head + b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n--l2r2--\r\n"


def _infer_request(photo: bytes) -> bytes:
    """The `inference.ModelInferRequest` of one tensor of bytes, by hand: its stubs are in the peer's environment."""
    contents = _field(8, photo)
    tensor = _field(1, b"photo") + _field(2, b"BYTES") + _field(3, b"\x01") + _field(5, contents)
    return _field(1, b"l2r2") + _field(5, tensor)


def _field(number: int, value: bytes) -> bytes:
    length, size = bytearray(), len(value)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + value


def _write_mlserver(folder: Path, port: int) -> None:
    settings = {
        "host": "127.0.0.1",
        "grpc_port": port,
        "http_port": _free_port(),
        "metrics_port": _free_port(),
        "parallel_workers": available_cores(),
        "grpc_max_message_length": 2**25,
        "debug": False,
    }
    model = {"name": "l2r2", "implementation": "tests.bench.peers.mlserver_app.Recognition"}
    for name, values in (("settings", settings), ("model-settings", model)):
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")


def _agreement(bundle: Path, deployment: str, photographs: list[bytes]) -> Figure:
    """Share of photographs on which ours and the same task's way, both in this process, give the same class."""
    from tests.bench.peers import work

    answers = []
    for task, chosen in (("cascade", deployment), ("both", REFERENCE)):
        told = {"L2R2_BENCH_BUNDLE": str(bundle), "L2R2_BENCH_DEPLOYMENT": chosen, "L2R2_BENCH_TASK": task}
        answer = work.answering(told)
        answers.append([answer(photo)["candidates"][0]["name"] for photo in photographs])
    share = float(np.mean([a == b for a, b in zip(*answers, strict=True)]))
    return Figure(value=share, unit="share", n=len(photographs), low=share, high=share)
