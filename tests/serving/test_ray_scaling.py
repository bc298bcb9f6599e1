"""Replicas on a Ray cluster that was there before: more of them under load, fewer without, two on one GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from l2r2.bundle import Bundle
from l2r2_serving.client import Client
from tests.serving.leaving import session, started
from tests.serving.test_cli import L2R2
from tests.tiny import MUDDY, encode, make_photo

pytest.importorskip("ray")

pytestmark = pytest.mark.slow

PATIENCE_S = 240.0
"""Ray looks at the load every ten seconds, and takes seconds to start a replica."""

LARGE = encode(make_photo(MUDDY).repeat(10, 0).repeat(10, 1))

CLUSTER = """
import ray, signal
made = ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
print(made.address_info["gcs_address"], flush=True)
signal.pause()
"""
"""To Ray a GPU is a number that is given out; no process of this one looks for it."""

SETTINGS = """
[ray]
target_ongoing_requests = 1.0
upscale_delay_s = 0.0
downscale_delay_s = 0.0
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    with started([sys.executable, "-c", CLUSTER], tmp_path / "cluster") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process


def test_replicas_come_and_go_with_the_load(
    cluster: tuple[str, subprocess.Popen[str]], bundle: Bundle, tmp_path: Path
) -> None:
    address, ray = cluster
    (tmp_path / "settings.toml").write_text(SETTINGS)
    words = ["--ray", "--ray-address", address, "--max-replicas", "3", "--replica-gpus", "0.5", "--port", "0"]
    command = [*L2R2, "serve", str(bundle.folder), "--config", str(tmp_path / "settings.toml"), *words]

    def replicas() -> int:
        return sum(line.startswith("ray::ServeReplica:l2r2:") for line in session(ray.pid).values())

    def until(wanted: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while replicas() != wanted:
            assert time.monotonic() < end, f"{replicas()} replicas, never {wanted}"
            time.sleep(0.1)

    with started(command, tmp_path / "log") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.endswith(", on Ray\n"), (tmp_path / "log").read_text()
        server, over = line.split("ready on ")[1].split(",")[0], Event()
        assert replicas() == 1

        def call() -> int:
            answered = 0
            with Client(server, timeout_s=PATIENCE_S) as client:
                while not over.is_set():
                    assert client.recognize(LARGE).prediction.answer.name
                    answered += 1
            return answered

        with ThreadPoolExecutor(6) as pool:
            callers = [pool.submit(call) for _ in range(6)]
            try:
                until(2)  # a third would be wanted, but the GPU has room for two
            finally:
                over.set()
            assert all(caller.result(PATIENCE_S) > 0 for caller in callers)
        until(1)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert replicas() == 0
