"""`l2r2 recognize`, and where this package's commands are added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from l2r2.errors import ImageError, L2R2Error, ServingError
from l2r2.types import Metadata, make_metadata
from l2r2_serving.answer import Answer
from l2r2_serving.console_command import console
from l2r2_serving.limits import DEFAULT_TOP_K, MAX_TOP_K
from l2r2_serving.needing import needing_grpc
from l2r2_serving.ray_commands import recognize_ray
from l2r2_serving.serve_command import serve
from l2r2_serving.token_command import token as make_token

Answering = Callable[[bytes], Answer]
"""From an encoded photograph to its answer."""


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(serve)
    app.command()(recognize)
    app.command("token")(make_token)
    app.command()(console)


def recognize(
    photos: Annotated[
        list[Path] | None, typer.Argument(metavar="PHOTO …", help="Files to recognize.", show_default=False)
    ] = None,
    *,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ask a server.")] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="DIR", help="Answer in this process, from a bundle's folder.")
    ] = None,
    ray: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="A folder or table (column path) of photos, on all cores, with --bundle."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --ray: its Parquet files; a broken run goes on there.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With --ray: photos recognized at once.", show_default="number of cores")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="With --ray: GPUs of an actor; 0.25: four share one.", show_default="0")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="With --ray: photos of a Parquet file.", show_default="500")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster.", show_default="one of its own, here")
    ] = None,
    habitat: Annotated[str | None, typer.Option(help="Where it was seen.")] = None,
    substrate: Annotated[str | None, typer.Option(help="What it grew or sat on.")] = None,
    month: Annotated[int | None, typer.Option(help="1 (January) to 12.")] = None,
    top_k: Annotated[int, typer.Option(min=1, max=MAX_TOP_K, help="Candidates an answer.")] = DEFAULT_TOP_K,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the server, a photo.")] = 30.0,
    tls: Annotated[Path | None, typer.Option(metavar="FILE", help="The server's CA, PEM; else plain text.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="L2R2_TOKEN", help="Yours, where the server asks.", show_envvar=True)
    ] = None,
) -> None:
    """Recognize photos: on a server, in this process, or millions of them with Ray.

    A photo that cannot be recognized is reported on stderr and does not lose the others; the exit code is then 1. With
    --ray it is a row with its error.

    Example: l2r2 recognize photo.jpg --bundle bundles/flowers --month 9

    Example: l2r2 recognize --ray photos.csv --bundle bundles/flowers --out answers
    """
    with_ray = {"actors": actors, "num_gpus": gpus, "shard_size": shard_size, "address": ray_address}
    if ray is not None:
        if photos or server is not None or bundle is None or out is None or habitat or substrate or month is not None:
            raise typer.BadParameter("--ray DATASET wants --bundle DIR and --out DIR, no PHOTO, server or metadata")
        recognize_ray(ray, out, bundle, top_k=top_k, **with_ray)
        return
    if any(value is not None for value in (out, *with_ray.values())):
        raise typer.BadParameter("--out, --actors, --gpus, --shard-size and --ray-address go with --ray DATASET")
    if not photos:
        raise typer.BadParameter("give a PHOTO, or several")
    if (server is None) == (bundle is None):
        raise typer.BadParameter("give exactly one of --server HOST:PORT and --bundle DIR")
    metadata = make_metadata(habitat=habitat, substrate=substrate, month=month)
    with needing_grpc():
        from l2r2_serving.report import as_json, as_text, shown
    failed = False
    with ExitStack() as stack:
        if server is not None:
            with needing_grpc():
                from l2r2_serving.client import Client
            client = stack.enter_context(Client(server, timeout_s=timeout_s, tls=tls, token=token))
            answering: Answering = partial(client.recognize, metadata=metadata, top_k=top_k)
        else:
            answering = _from_bundle(str(bundle), metadata, top_k)
        for path in stack.enter_context(_progress(photos)):
            try:
                answer = answering(_read(path))
            except L2R2Error as error:
                if type(error) is ServingError:  # no server: every other photo would say the same
                    raise
                failed = True
                sys.stderr.write(f"l2r2: error: {shown(path)}: {error}\n")
            else:
                sys.stdout.write((as_json if json_ else as_text)(path, answer) + "\n")
                sys.stdout.flush()
    if failed:
        raise typer.Exit(1)


def _from_bundle(place: str, metadata: Metadata, top_k: int) -> Answering:
    from l2r2_serving.bundles import find_bundle, open_bundle

    opened = open_bundle(find_bundle(place))
    return lambda data: opened.answer(data, metadata, top_k)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error


@contextmanager
def _progress(photos: list[Path]) -> Iterator[Iterator[Path]]:
    """The photos in order, with a bar on stderr where somebody sees it."""
    if len(photos) < 2 or not sys.stderr.isatty():
        yield iter(photos)
        return
    from rich.console import Console
    from rich.progress import Progress

    # Answers must go to stdout even while the bar is drawn; only on one terminal do they have to take turns with it.
    same = sys.stdout.isatty()
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=same) as progress:
        yield iter(progress.track(photos, description="recognizing"))
