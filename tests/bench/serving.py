"""What the service adds to the work itself, how long it takes to be ready, and what it does when too much is asked."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from l2r2 import machine
from l2r2.bundle import load_bundle
from l2r2.datasets import load_dataset
from l2r2.machine import available_cores
from l2r2_serving.bundles import open_bundle
from l2r2_serving.client import Client
from l2r2_serving.settings import ServerSettings
from tests.bench.exporting import BUNDLE, DATA, WORK
from tests.bench.measure import Figure, of
from tests.tiny import RED, encode, make_photo, make_tiny_bundle

CALLERS = 16
BLOCKS, BLOCK_S = 9, 8.0
HALF_S, FLOOD_S, FULL = 40.0, 30.0, 3
STARTS = 7
ADDED = 300
GROWTH_REQUESTS, SETTLED = 20_000, 2_000


def figures() -> Iterator[tuple[str, Figure]]:
    """With the INT8 deployment for OpenVINO that the benchmark `exporting` makes, else with the reference.

    Clients are processes of their own on the same cores. Ready: from the start of the process until health says
    SERVING, the bundle's files in the page cache. Growth and what gRPC adds: with a tiny bundle, as they are the
    service's own. Half the load: arrivals at random, and evenly spaced; two workers that take always the same time
    would give 2.6 and 1.0. Overload: once with all on the same cores, where whoever makes ten times the load takes a
    good part of them, and once with half of the cores for the server and half for its callers.
    """
    yield "serve.rss_growth_mb", _growth()
    yield "serve.grpc_added_ms", _added()
    if not (BUNDLE.is_dir() and DATA.is_dir()):
        print("serving: no demo bundle or data here; run make demo first")
        return
    small = WORK / load_bundle(BUNDLE).version / "openvino-int8"
    bundle, deployment = (small, ["openvino", "int8"]) if small.is_dir() else (BUNDLE, ["onnxruntime", "fp32"])
    print(f"  served: {'/'.join(deployment)}")
    dataset = load_dataset(DATA)
    paths = [str(path) for name in dataset.test_sets for path in dataset.split(name).paths()]
    photos = paths[:: max(1, len(paths) // 60)]
    words = [str(bundle), "--runtime", deployment[0], "--precision", deployment[1]]
    yield "serve.ready_s", _ready(words)
    ratios, peaks = [], []
    with _served(*words) as (address, _):
        for _ in range(BLOCKS):
            order = {"kind": "inside", "bundle": str(bundle), "deployment": deployment, "photos": photos}
            limit = _rate(_load(**order, workers=available_cores(), seconds=BLOCK_S))
            peaks.append(_rate(_load(kind="closed", address=address, photos=photos, callers=CALLERS, seconds=BLOCK_S)))
            ratios.append(peaks[-1] / limit)
        yield "serve.throughput_ratio", of(ratios, "×")
        peak = float(np.median(peaks))
        yield "serve.throughput", of(peaks, "photos/s")
        for name, seed in (("serve.p99_over_p50", None), ("serve.p99_over_p50_random", 0)):
            half = _load(kind="open", address=address, photos=photos, rate=peak / 2, seconds=HALF_S, seed=seed)
            p50, p99 = np.percentile(half["latencies"], [50, 99])
            yield name, _one(p99 / p50, "×", len(half["latencies"]))
        flood = _load(kind="open", address=address, photos=photos, rate=10 * peak, seconds=FLOOD_S, seed=1)
        print(f"  overload, all on the same cores: {flood['codes']}")
        yield "serve.overload_goodput_shared", _one(_rate(flood) / peak, "×", sum(flood["codes"].values()))
    if available_cores() > 1 and shutil.which("taskset"):
        yield from _overload(words, photos)


def _overload(words: list[str], photos: list[str]) -> Iterator[tuple[str, Figure]]:
    """The server and its callers on cores of their own."""
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    slots = ServerSettings(workers=len(own)).slot_count
    with _served(*words, cores=own) as (address, _):

        def full() -> dict[str, Any]:
            """As many callers as the server has room for."""
            order = {"kind": "closed", "address": address, "photos": photos, "callers": slots, "seconds": BLOCK_S}
            return _load(**order, cores=others)

        before = [full() for _ in range(FULL)]
        peak = float(np.median([_rate(each) for each in before]))
        order = {"kind": "open", "address": address, "photos": photos, "rate": 10 * peak, "seconds": FLOOD_S, "seed": 1}
        flood = _load(**order, cores=others)
        calm = [*before, *(full() for _ in range(FULL))]
    peak = float(np.median([_rate(each) for each in calm]))
    p99 = float(np.percentile(flood["latencies"], 99))
    longest = float(np.percentile([latency for each in calm for latency in each["latencies"]], 99))
    print(
        f"  overload, {len(own)} of {len(cores)} cores for the server, {peak:.1f} photos/s at its peak:\n"
        f"  {flood['codes']}; p99 of the accepted {p99:.2f} s, with the queue just full {longest:.2f} s; "
        f"slots over peak {slots / peak:.2f} s"
    )
    yield "serve.overload_goodput", _one(_rate(flood) / peak, "×", sum(flood["codes"].values()))
    yield "serve.overload_p99_over_full_queue", _one(p99 / longest, "×", len(flood["latencies"]))
    yield "serve.overload_p99_over_promise", _one(p99 * peak / slots, "×", len(flood["latencies"]))


def _one(value: float, unit: str, n: int) -> Figure:
    return Figure(value=float(value), unit=unit, n=n, low=float(value), high=float(value))


def _rate(load: dict[str, Any]) -> float:
    return len(load["latencies"]) / load["seconds"]


def _load(*, cores: list[int] | None = None, **order: Any) -> dict[str, Any]:
    command = [*_on(cores), "-m", "tests.bench.load", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _on(cores: list[int] | None) -> list[str]:
    """Python, on some cores alone."""
    return [sys.executable] if cores is None else ["taskset", "-c", ",".join(map(str, cores)), sys.executable]


@contextmanager
def _served(*words: str, cores: list[int] | None = None) -> Iterator[tuple[str, int]]:
    """Address and process id of a server."""
    command = [*_on(cores), "-m", "l2r2", "serve", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split("ready on ")[1].split(",")[0], process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def _ready(words: list[str]) -> Figure:
    taken = []
    for _ in range(STARTS):
        began = time.perf_counter()
        with _served(*words):
            taken.append(time.perf_counter() - began)
    return of(taken, "s")


def _added() -> Figure:
    """A photograph of 300 kB over gRPC and in this process, which takes memory as a server does, in turns."""
    machine.settle_memory()
    data = _noisy()
    with tempfile.TemporaryDirectory() as folder:
        found = open_bundle(make_tiny_bundle(Path(folder) / "tiny"))
        found.warm_up()
        with _served(str(Path(folder) / "tiny")) as (address, _), Client(address) as client:
            remote: list[float] = []
            local: list[float] = []
            for _ in range(ADDED):
                for times, ask in ((remote, client.recognize), (local, lambda photo: found.answer(photo, {}, 5))):
                    began = time.perf_counter()
                    ask(data)
                    times.append(1000 * (time.perf_counter() - began))
    added = np.array(remote) - np.array(local)
    low, high = np.percentile(added, [25, 75])
    value = float(np.median(remote) - np.median(local))
    return Figure(value=value, unit="ms", n=ADDED, low=float(low), high=float(high))


def _noisy() -> bytes:
    """A JPEG of about 300 kB and a megapixel."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((1200, 900), Image.Resampling.BICUBIC)
    for quality in range(60, 101):
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=quality)
        if file.tell() >= 300_000:
            break
    return file.getvalue()


def _growth() -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_bundle(Path(folder) / "tiny")
        photo = Path(folder) / "photo.png"
        photo.write_bytes(encode(make_photo(RED)))
        with _served(str(Path(folder) / "tiny")) as (address, process):
            order = {"kind": "closed", "address": address, "photos": [str(photo)], "callers": CALLERS, "seconds": 600.0}
            _load(**order, most=SETTLED)
            before = _rss_mb(process)
            _load(**order, most=GROWTH_REQUESTS - SETTLED)
            return _one(_rss_mb(process) - before, "MB", GROWTH_REQUESTS)


def _rss_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
