"""What this process may have of its machine: cores, and memory as glibc hands it out."""

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its own limits."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Source: glibc's malloc.h."""

_KEPT, _FROM_SYSTEM = 64 * 2**20, 32 * 2**20
"""Bytes: what is free at the end of the heap and not returned; a block so large is asked of the system (32 MiB is the
most that glibc takes)."""


def available_cores() -> int:
    """Cores that this process may use; in a container fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cgroup_cores())))


def settle_memory() -> None:
    """Allocate as suits a process that recognizes photographs again and again; before it has made a thread.

    All threads allocate from one place: else each keeps what it once had, 25 MB of the demo's. They allocate little and
    rarely beside what they compute, so none waits for another. And pictures stay in the heap: to return their pages and
    touch new ones for the next photograph cost 6 ms of the 32 that one of a megapixel took. Only with glibc.
    """
    if (change := _of_libc("mallopt")) is not None:
        change(_M_ARENA_MAX, 1)
        change(_M_MMAP_THRESHOLD, _FROM_SYSTEM)
        change(_M_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """Return what is free to the system, as after loading, which takes more than what follows. Only with glibc."""
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _cgroup_cores() -> float:
    """What a container's limit on CPU time amounts to (cgroup v2, else v1)."""
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = float(quota) / float(period)
    except (OSError, ValueError):  # no limit reads "max"
        return math.inf
    return cores if cores > 0 else math.inf
