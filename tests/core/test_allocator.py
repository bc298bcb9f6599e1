"""A process that serves keeps the memory that it will want again."""

import subprocess
import sys

import pytest

PICTURES = """
import resource
import sys

from l2r2 import allocator

if sys.argv[1] == "settled":
    allocator.settle()

import numpy as np


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pictures = [np.ones(3_000_000, np.float32) for _ in range(3)]
    del pictures
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print([faults() for _ in range(5)][-1])
allocator.give_back()
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
