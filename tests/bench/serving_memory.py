"""The most memory that a serving process takes with the demo's bundle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from l2r2.datasets import load_dataset
from l2r2_serving.client import Client
from tests.bench.measure import Figure

BUNDLE, DATA = Path("mlruns/bundles/demo"), Path("data/starter")
REQUESTS = 60


def figures() -> Iterator[tuple[str, Figure]]:
    """Peak resident set (VmHWM) of `l2r2 serve` after requests from the test sets, one after another."""
    if not (BUNDLE.is_dir() and DATA.is_dir() and Path("/proc/self/status").is_file()):
        print("serving memory: no demo bundle, data or /proc here; run make demo first, on Linux")
        return
    dataset = load_dataset(DATA)
    paths = [path for name in dataset.test_sets for path in dataset.split(name).paths()]
    command = [sys.executable, "-m", "l2r2", "serve", str(BUNDLE), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split("ready on ")[1].split(",")[0]
            with Client(address, timeout_s=60.0) as client:
                for path in paths[:: max(1, len(paths) // REQUESTS)][:REQUESTS]:
                    client.recognize(path.read_bytes())
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        finally:
            process.terminate()
            process.wait(timeout=60)
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    yield "serve.rss_mb", Figure(value=peak, unit="MB", n=REQUESTS, low=peak, high=peak)
