"""A lock between processes that no dead process can hold."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from l2r2.errors import ArtifactError

POLL_S = 0.1


@contextmanager
def held(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock; the system releases it when its process ends, in whatever way.

    Args:
        path: Of a small file that names the last owner. It stays: removing it would let two own it.
        waiting: Called once with the owner's process id, if there is one to wait for.
    Raises:
        ArtifactError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; make room, or name another folder") from error
    try:
        told = False
        while not _taken(descriptor):
            if not told:
                waiting(path.read_text(encoding="utf-8").strip() or "unknown")
                told = True
            time.sleep(POLL_S)
        with suppress(OSError):  # a note for those who wait, on a disk that may be full
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)  # which releases it


if sys.platform == "win32":
    import msvcrt

    def _taken(descriptor: int) -> bool:
        os.lseek(descriptor, 2**20, os.SEEK_SET)  # past the note, which others read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _taken(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
