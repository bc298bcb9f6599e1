"""The most memory that a serving process takes with the demo's bundle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from l2r2.bundle import load_bundle
from l2r2.datasets import load_dataset
from l2r2_serving.client import Client
from tests.bench.exporting import BUNDLE, DATA, WORK
from tests.bench.measure import Figure

REQUESTS = 60
CALLERS = 4


def figures() -> Iterator[tuple[str, Figure]]:
    """Peak resident set (VmHWM) of `l2r2 serve` after requests from the test sets, four callers at once: with the INT8
    deployment for OpenVINO that the benchmark `exporting` makes, and with the reference.
    """
    if not (BUNDLE.is_dir() and DATA.is_dir() and Path("/proc/self/status").is_file()):
        print("serving memory: no demo bundle, data or /proc here; run make demo first, on Linux")
        return
    dataset = load_dataset(DATA)
    paths = [path for name in dataset.test_sets for path in dataset.split(name).paths()]
    photographs = [path.read_bytes() for path in paths[:: max(1, len(paths) // REQUESTS)][:REQUESTS]]
    small = WORK / load_bundle(BUNDLE).version / "openvino-int8"
    if small.is_dir():
        chosen = ["--runtime", "openvino", "--precision", "int8"]
        yield "serve.rss_mb", _peak([str(small), *chosen], photographs)
    else:
        print("serving memory: no INT8 deployment here; run: python -m tests.bench exporting")
    yield "serve.rss_mb_reference", _peak([str(BUNDLE)], photographs)


def _peak(words: list[str], photographs: list[bytes]) -> Figure:
    command = [sys.executable, "-m", "l2r2", "serve", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split("ready on ")[1].split(",")[0]
            with Client(address, timeout_s=60.0) as client, ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(client.recognize, photographs))
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        finally:
            process.terminate()
            process.wait(timeout=60)
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    return Figure(value=peak, unit="MB", n=len(photographs), low=peak, high=peak)
