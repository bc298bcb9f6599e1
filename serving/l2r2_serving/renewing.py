"""Files that somebody writes anew while they are used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

QUIET_S = 0.1
"""A file that was written less long ago is taken for one that is still being written.

An editor empties a file before it writes it, and an empty list of callers is a good one, of nobody.
"""

T = TypeVar("T")


class RenewedFiles:
    """Files that are read again when they are others than before, and whole."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Note what they are now; read them after that, not before."""
        self._paths = tuple(paths)
        self._seen = self._stamps()

    def reread(self, read: Callable[[], T]) -> T | None:
        """What `read` makes of them, once for each change; None: there is no change, or no end of it yet.

        A change ends `QUIET_S` after the last write. A file that is gone is a change as well. A time of writing in the
        future, as after a clock was set, says nothing and is not waited for.

        Raises:
            Exception: what `read` raises; it is not asked again before the next change.
        """
        stamps, now = self._stamps(), time.time_ns()
        if stamps == self._seen:
            return None
        if any(stamp is not None and 0 <= now - stamp[0] < QUIET_S * 1e9 for stamp in stamps):
            return None
        self._seen = stamps
        found = read()
        return found if self._stamps() == stamps else None  # else written while it was read

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Time of writing in ns, size in bytes and inode; None: there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
