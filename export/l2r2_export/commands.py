"""`l2r2 export`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2r2.errors import ArtifactError, ConfigError, InputError
from l2r2_export import profile_command

if TYPE_CHECKING:
    from l2r2.bundle import Bundle
    from l2r2.cli.progress import Bars
    from l2r2.datasets import Dataset
    from l2r2.tracking import Store

BUNDLES = Path("mlruns/bundles")
LATEST = "latest:"


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(export)
    profile_command.register(app)


def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN|BUNDLE", help="Run of l2r2 train, latest:EXPERIMENT, or a bundle's folder.")
    ],
    *,
    data: Annotated[Path, typer.Option("--data", help="Folder of the data set that it was fitted on.")],
    out: Annotated[
        Path | None, typer.Option(help="The bundle's folder, for a run.", show_default="mlruns/bundles/RECIPE_NAME")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name to register under.", show_default="the recipe's")] = None,
    register_: Annotated[bool, typer.Option("--register/--no-register", help="Register the bundle in MLflow.")] = True,
    runtime: Annotated[
        str | None, typer.Option(help="Add a deployment on this runtime; with --auto: try only these, a,b.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 or int8; with --auto: try only these, a,b.")
    ] = None,
    size_px: Annotated[int | None, typer.Option(help="Input of the deployment's localizer; less is quicker.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of one inference of the deployment, on a CPU.")] = 1,
    serving: Annotated[bool, typer.Option("--serving", help="Let the deployment serve from now on.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Build TensorRT engines into the bundle.")] = False,
    architectures: Annotated[
        str, typer.Option(help="GPUs that TensorRT-RTX builds for, here or elsewhere: SM86,SM89.")
    ] = "",
    auto: Annotated[bool, typer.Option("--auto", help="Try what runs here, and let the best serve.")] = False,
    latency_ms: Annotated[float | None, typer.Option(min=0, help="Goal of --auto: at most, a photograph.")] = None,
    throughput: Annotated[float | None, typer.Option(min=0, help="Goal of --auto: at least, photographs/s.")] = None,
    accuracy_drop: Annotated[float, typer.Option(min=0, help="Goal of --auto: points, at most.")] = 0.5,
    validation: Annotated[int, typer.Option(min=1, help="Validation photographs a deployment is compared on.")] = 240,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow store; default sqlite:///mlruns/mlflow.db.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Turn a fitted experiment into a bundle that serves, or add a deployment to a bundle, once answers are proven.

    A bundle of the same run that stands there already is kept.

    Examples: l2r2 export latest:demo --data data/starter;
    l2r2 export mlruns/bundles/demo --data data/starter --runtime openvino --precision int8;
    l2r2 export mlruns/bundles/demo --data data/starter --auto --latency-ms 100
    """
    from l2r2.cli.progress import progress_bars
    from l2r2.datasets import load_dataset
    from l2r2.manifest import MANIFEST
    from l2r2.tracking import Store
    from l2r2_export.deploy_command import Request, add, check_request

    request = Request(
        runtime=runtime,
        precision=precision,
        size_px=size_px,
        threads=threads,
        serving=serving,
        build=build,
        architectures=architectures,
        auto=auto,
        latency_ms=latency_ms,
        throughput=throughput,
        accuracy_drop=accuracy_drop,
        validation=validation,
    )
    check_request(request)
    store, photographs = Store(tracking_uri), load_dataset(data)
    told: dict[str, object] = {}
    with progress_bars() as bars:
        if (Path(source) / MANIFEST).is_file():
            from l2r2.bundle import load_bundle

            if out is not None:
                raise ConfigError(f"--out {out} is for a run; the bundle {source} gets its deployment where it is")
            bundle, kept = load_bundle(Path(source)), True
        else:
            bundle, kept = _export_run(store, source, photographs, out, bars)
        if request.asks:
            bundle, told = add(store, bundle, photographs, request, bars)
    registered = _register(store, bundle, name or bundle.manifest.name) if register_ else None
    if as_json:
        values = {"bundle": str(bundle.folder), "version": bundle.version, "run_id": bundle.manifest.run_id}
        parity = {each.name: each.parity for each in bundle.manifest.deployments}
        typer.echo(json.dumps(values | {"kept": kept, "registered": registered, "parity": parity} | told))
        return
    _show(bundle)
    typer.echo(f"bundle {bundle.folder} {bundle.version}{' (was there already, kept)' if kept and not told else ''}")
    if registered is not None:
        typer.echo(f"registered as {registered}")


def _export_run(store: Store, run: str, photographs: Dataset, out: Path | None, bars: Bars) -> tuple[Bundle, bool]:
    """The bundle of a run, and whether it stood there already."""
    from l2r2.experiments import load_experiment
    from l2r2_export.export import STEPS, check_dataset, export_experiment

    run_id = _find(store, run)
    experiment = load_experiment(store, run_id)
    check_dataset(experiment, photographs)
    place = out or BUNDLES / experiment.recipe.name
    bundle = _kept(place, run_id)
    kept = bundle is not None
    if bundle is None:
        bars.stage("exporting", len(STEPS))
        bundle = export_experiment(experiment, photographs, place, on_step=bars.step)
    _track(store, bundle, again=not kept)
    return bundle, kept


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
    run_id, parity = bundle.manifest.run_id, bundle.manifest.reference.parity
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

    table = Table(title="compared on validation photographs: exported with original, other deployments with exported")
    for column in ("deployment", "part", "n", "figure", "value"):
        table.add_column(column, justify="right" if column in {"n", "value"} else "left")
    for deployment in bundle.manifest.deployments:
        first = deployment.name
        for part, figures in deployment.parity.items():
            names = [name for name in figures if name not in {"n", "groups"}]
            for place, name in enumerate(names):
                left = (first, part, f"{figures['n']:.0f}") if place == 0 else ("", "", "")
                table.add_row(*left, name, f"{figures[name]:.3g}")
                first = ""
    Console(width=None if Console().is_terminal else 120).print(table)
