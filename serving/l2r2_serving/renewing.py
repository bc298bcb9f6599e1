"""Files that somebody writes anew while they are used."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

QUIET_S = 0.1
"""A file that was written less long ago is taken for one that is still being written.

An editor empties a file before it writes it, and an empty list of callers is a good one, of nobody.
"""


class RenewedFiles:
    """Whether files are others than those that were read, and whole."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Note what they are now; read them after that, not before."""
        self._paths = tuple(paths)
        self._seen = self._stamps()

    def renewed(self) -> bool:
        """Whether to read them again: true once for each change, at the earliest `QUIET_S` after the last write.

        A file that is gone is a change as well. A time of writing in the future, as after a clock was set, says
        nothing, and the change is true at once.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        now = time.time_ns()
        if any(stamp is not None and 0 <= now - stamp[0] < QUIET_S * 1e9 for stamp in stamps):
            return False
        self._seen = stamps
        return True

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Time of writing in ns, size in bytes and inode; None: there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
