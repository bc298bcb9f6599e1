"""`l2r2 export`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2r2.errors import ArtifactError, InputError
from l2r2_export import profile_command

if TYPE_CHECKING:
    from l2r2.bundle import Bundle
    from l2r2.tracking import Store

BUNDLES = Path("mlruns/bundles")
LATEST = "latest:"


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(export)
    profile_command.register(app)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN_ID", help="Run of l2r2 train, or latest:EXPERIMENT.")],
    *,
    data: Annotated[Path, typer.Option("--data", help="Folder of the data set that it was fitted on.")],
    out: Annotated[
        Path | None, typer.Option(help="The bundle's folder.", show_default="mlruns/bundles/RECIPE_NAME")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name to register under.", show_default="the recipe's")] = None,
    register_: Annotated[bool, typer.Option("--register/--no-register", help="Register the bundle in MLflow.")] = True,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow store; default sqlite:///mlruns/mlflow.db.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Turn a fitted experiment into a bundle that serves, once its models are proven to answer as before.

    A bundle of the same run that stands there already is kept.

    Example: l2r2 export latest:demo --data data/starter
    """
    from l2r2.cli.progress import progress_bars
    from l2r2.datasets import load_dataset
    from l2r2.experiments import load_experiment
    from l2r2.tracking import Store
    from l2r2_export.export import STEPS, check_dataset, export_experiment

    store = Store(tracking_uri)
    run_id = _find(store, run)
    experiment, photographs = load_experiment(store, run_id), load_dataset(data)
    check_dataset(experiment, photographs)
    place = out or BUNDLES / experiment.recipe.name
    bundle = _kept(place, run_id)
    kept = bundle is not None
    if bundle is None:
        with progress_bars() as bars:
            bars.stage("exporting", len(STEPS))
            bundle = export_experiment(experiment, photographs, place, on_step=bars.step)
    _track(store, bundle, again=not kept)
    registered = _register(store, bundle, name or bundle.manifest.name) if register_ else None
    if as_json:
        values = {"bundle": str(place), "version": bundle.version, "run_id": run_id, "kept": kept}
        typer.echo(json.dumps(values | {"registered": registered, "parity": bundle.manifest.parity}))
        return
    _show(bundle)
    typer.echo(f"bundle {place} {bundle.version}{' (was there already, kept)' if kept else ''}")
    if registered is not None:
        typer.echo(f"registered as {registered}")


def _find(store: Store, run: str) -> str:
    if not run.startswith(LATEST):
        return run
    name = run.removeprefix(LATEST)
    found = store.finished(name, {"kind": "experiment"})
    if found is None:
        raise InputError(f"{store.uri} has no finished experiment {name!r}; make one with: l2r2 train {name} --data …")
    return found


def _kept(place: Path, run_id: str) -> Bundle | None:
    """The bundle of this very run, if it stands there whole."""
    from l2r2.bundle import load_bundle

    try:
        bundle = load_bundle(place)
    except ArtifactError:
        return None
    return bundle if bundle.manifest.run_id == run_id else None


def _track(store: Store, bundle: Bundle, *, again: bool) -> None:
    """Keep the parity figures with the run: as metrics, and as a file; not `again` where they are there already."""
    run_id, parity = bundle.manifest.run_id, bundle.manifest.parity
    metrics = {f"parity.{part}.{name}": value for part, figures in parity.items() for name, value in figures.items()}
    if not again and set(metrics) <= set(store.metrics_of(run_id)):
        return
    run = store.adopt(run_id)
    run.metrics(metrics)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parity.json"
        file.write_text(json.dumps({"bundle": bundle.version, **parity}, indent=2) + "\n", encoding="utf-8")
        run.file(file, "export")


def _register(store: Store, bundle: Bundle, name: str) -> str:
    return store.registered(name, bundle.version) or store.register(bundle, bundle.manifest.run_id, name)


def _show(bundle: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="exported against original, on validation photographs")
    for column in ("part", "n", "figure", "value"):
        table.add_column(column, justify="right" if column in {"n", "value"} else "left")
    for part, figures in bundle.manifest.parity.items():
        rows = [(name, value) for name, value in figures.items() if name != "n"]
        for place, (name, value) in enumerate(rows):
            first = (part, f"{figures['n']:.0f}") if place == 0 else ("", "")
            table.add_row(*first, name, f"{value:.3g}")
    Console(width=None if Console().is_terminal else 120).print(table)
