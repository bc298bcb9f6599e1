"""`l2r2 …`. Turns an L2R2Error into one line and an exit code."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points

import typer

from l2r2 import __version__
from l2r2.cli import data, experiments, paper
from l2r2.errors import L2R2Error

__all__ = ["build", "main"]


def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what the library does."),
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if version:
        typer.echo(f"l2r2 {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The app with every command, those of the other packages (entry points `l2r2.commands`) included."""
    app = typer.Typer(
        name="l2r2",
        help="Localize to Recognize Robustly: photographs in, calibrated answers out.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for part in (data, experiments, paper):
        part.register(app)
    for point in sorted(entry_points(group="l2r2.commands"), key=lambda p: p.name):
        point.load()(app)
    return app


def main() -> None:
    """Run; 0 on success, 1 on an L2R2Error, 2 on wrong usage, 130 when interrupted."""
    try:
        build()()
    except L2R2Error as error:
        typer.echo(f"l2r2: error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("l2r2: interrupted; what was finished is kept, run it again to go on", err=True)
        sys.exit(130)
