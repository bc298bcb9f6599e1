"""A command with processes of its own, none of which is left when the test is done with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LEAVE_S = 60.0


def session(leader: int) -> dict[int, str]:
    """Processes of a session but its leader: id → command line. Those that are dead but not waited for are none."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if int(state[3]) == leader != int(folder.name) and state[0] not in "ZX":
                found[int(folder.name)] = line
    return found


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own, stderr to `log`; kill it in the end, if it still runs.

    Raises:
        AssertionError: something that it started has not left by itself.
    """
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            end = time.monotonic() + LEAVE_S
            while (left := staying(process.pid)) and time.monotonic() < end:
                time.sleep(0.1)
            for pid in session(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert left == []


def staying(leader: int) -> list[str]:
    """Of a session, but for Ray's agents: where their server was killed they look for it for a minute, then leave."""
    return [line for line in session(leader).values() if not line.endswith("Agent")]
