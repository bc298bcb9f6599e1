"""What `l2r2 serve --ray` and `l2r2 recognize --ray` do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from l2r2.config import parse_settings
from l2r2_serving.needing import needing_grpc

if TYPE_CHECKING:
    from l2r2_serving.settings import ServerSettings


def serve_ray(settings: ServerSettings) -> None:
    """Serve on Ray Serve until stopped.

    Raises:
        As `serve_on_ray`.
    """
    with needing_grpc():
        from l2r2_serving.ray_serve import serve_on_ray

    serve_on_ray(settings, typer.echo)


def recognize_ray(dataset: Path, out: Path, bundle: str, **options: Any) -> None:
    """Recognize a data set with Ray Data; a line in the end says how much and how fast.

    Args:
        dataset: Folder or table of photographs.
        out: Folder of Parquet files; a run that was broken off goes on there.
        bundle: Its place, as `find_bundle` takes it.
        options: As `DatasetSettings`; None is not given.
    Raises:
        As `recognize_dataset`.
    """
    with needing_grpc():
        from l2r2_serving.ray_data import DatasetSettings, recognize_dataset

    settings = parse_settings(DatasetSettings, _given(options), "--ray")
    with _progress() as progress:
        done = recognize_dataset(dataset, out, bundle, settings, progress)
    typer.echo(
        f"l2r2 recognize: {done.photographs} photographs in {out}, {done.errors} with an error; "
        f"{done.done} now, {done.seconds:.1f} s, {done.per_second:.1f} a second"
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where somebody sees it."""
    if not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("recognizing", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
