"""Progress bars on standard error; plain lines where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Bars:
    """One bar a stage. Fulfils `l2r2.experiments.run.Progress`."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._followed = ""

    def stage(self, text: str, total: int) -> None:
        """Begin a stage of `total` steps."""
        self._task = self._bars.add_task(text, total=total, note="")
        if not self._bars.console.is_terminal:
            print(f"… {text}", file=sys.stderr, flush=True)  # noqa: T201

    def step(self, done: int, text: str = "") -> None:
        """Say how many steps are done, and perhaps how it stands."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, note=text)

    def follow(self, what: str, done: int, total: int) -> None:
        """Say how far `what` is; a stage begins whenever it changes."""
        if what != self._followed:
            self.stage(what, total)
            self._followed = what
        self.step(done)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Show bars while the block runs."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield Bars(bars)
