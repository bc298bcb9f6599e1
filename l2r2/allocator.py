"""How memory is taken from the system and returned to it; glibc only, elsewhere nothing."""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Source: glibc's malloc.h."""

_KEPT, _FROM_SYSTEM = 64 * 2**20, 32 * 2**20
"""Bytes: what is free at the end of the heap and not returned; a block so large is asked of the system (32 MiB is the
most that glibc takes)."""


def settle() -> None:
    """Allocate as suits a process that recognizes photographs again and again; before it has made a thread.

    All threads allocate from one place: else each keeps what it once had, 25 MB of the demo's. They allocate little and
    rarely beside what they compute, so none waits for another. And pictures stay in the heap: to return their pages and
    touch new ones for the next photograph cost 6 ms of the 32 that one of a megapixel took.
    """
    if (change := _of_libc("mallopt")) is not None:
        change(_M_ARENA_MAX, 1)
        change(_M_MMAP_THRESHOLD, _FROM_SYSTEM)
        change(_M_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return what is free to the system, as after loading, which takes more than what follows."""
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
