"""Cores of a container; a process that serves keeps the memory that it will want again."""

import subprocess
import sys
from pathlib import Path

import pytest

from l2r2.machine import available_cores

PICTURES = """
import resource
import sys

from l2r2 import machine

if sys.argv[1] == "settled":
    machine.settle_memory()

import numpy as np


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pictures = [np.ones(3_000_000, np.float32) for _ in range(3)]
    del pictures
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print([faults() for _ in range(5)][-1])
machine.give_back_memory()
print(faults())
"""


def _faults(how: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PICTURES, how], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_pages_are_touched_once_unless_they_are_given_back() -> None:
    """By how much depends on the size of the system's pages."""
    kept, given_back = _faults("settled")
    by_itself, _ = _faults("as it comes")
    assert 4 * kept < given_back
    assert 4 * kept < by_itself


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_a_container_has_the_cores_that_it_may_use(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("l2r2.machine.CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    assert available_cores() == cores
