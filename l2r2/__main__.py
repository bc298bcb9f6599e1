"""`l2r2` and `python -m l2r2`."""

import ctypes
import sys

_M_ARENA_MAX = -8
"""Source: glibc's malloc.h."""


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["serve"]:
        _share_one_arena()
    from l2r2.cli import main as run

    run()


def _share_one_arena() -> None:
    """Let all threads allocate from one place; glibc only, and before anything has made a thread.

    Else each thread of a service keeps what it once had: 25 MB of the demo's. Its workers allocate little and rarely
    beside what they compute, so none waits for another.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)


if __name__ == "__main__":
    main()
