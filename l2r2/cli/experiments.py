"""`l2r2 train | evaluate | compare | bundle`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from l2r2.bundle import load_bundle
from l2r2.cli.progress import progress_bars
from l2r2.config import find_recipe, load_recipe
from l2r2.errors import ConfigError

if TYPE_CHECKING:
    from l2r2.experiments.children import Progress
    from l2r2.experiments.run import Done
    from l2r2.tracking import Store

Data = Annotated[Path, typer.Option("--data", help="Folder of a data set.")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store; default sqlite:///mlruns/mlflow.db.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (train, evaluate, compare, bundle):
        app.command(command.__name__)(command)


def train(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a recipe that comes with l2r2.")],
    data: Data,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: train.epochs=5. Repeatable.")
    ] = None,
    tracking_uri: Uri = None,
    work: Annotated[Path, typer.Option(help="For what is under way; a killed run goes on from there.")] = Path(
        "mlruns/work"
    ),
    as_json: Json = False,
) -> None:
    """Train FG and FULL, fit calibration, fusion, priors and gate, score the test sets; all tracked in MLflow.

    Example: l2r2 train demo --data data/starter
    """
    from l2r2.experiments.report import ACCURACY, RESULTS
    from l2r2.tracking import Store

    store = Store(tracking_uri)
    with progress_bars() as bars:
        result = train_recipe(recipe, data, store, work, bars, _overrides(set_ or []))
    if as_json:
        found = {"run_id": result.run_id, "reused": result.reused, "experiment": store.name_of(result.run_id)}
        typer.echo(json.dumps(found))
        return
    kept = store.download(result.run_id, "tables")
    accuracy = kept / Path(ACCURACY).name
    typer.echo(accuracy.read_text(encoding="utf-8") if accuracy.is_file() else f"results: {kept / Path(RESULTS).name}")
    typer.echo(f"run {result.run_id}{' (was there already)' if result.reused else ''}")


def train_recipe(
    recipe: str,
    data: Path,
    store: Store,
    work: Path,
    bars: Progress,
    overrides: dict[str, object] | None = None,
) -> Done:
    """One experiment of a recipe (a name, or a TOML file) on the data set in a folder."""
    from l2r2.datasets import load_dataset
    from l2r2.experiments import run_experiment
    from l2r2.experiments.localizing import localizer_of

    settings = load_recipe(find_recipe(recipe), overrides or {})
    photographs = load_dataset(data)
    return run_experiment(settings, photographs, localizer_of(settings), store, work, bars)


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle, or models:/NAME@ALIAS.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Of the bundle's deployments.", show_default="serving")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the bundle's deployments.", show_default="serving")] = None,
    timed: Annotated[int, typer.Option(min=1, help="Photographs to time, one at a time.")] = 40,
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Judge a bundle as it will serve: accuracy on each test set, FULL skipped, milliseconds a stage.

    Example: l2r2 evaluate mlruns/bundles/demo --data data/starter
    """
    from l2r2.datasets import load_dataset
    from l2r2.experiments.evaluate import evaluate_bundle
    from l2r2.experiments.tables import markdown
    from l2r2.tracking import Store

    store = Store(tracking_uri)
    folder = store.fetch(bundle) if bundle.startswith("models:/") else Path(bundle)
    photographs, checked = load_dataset(data), load_bundle(folder)
    with progress_bars() as bars:
        deployment = checked.deployment(runtime, precision)
        result = evaluate_bundle(checked, photographs, bars, store, timed, deployment)
    if out is not None:
        result.save(out)
    if as_json:
        typer.echo(json.dumps(asdict(result) | {"bundle": str(folder)}, ensure_ascii=False))
        return
    typer.echo(markdown(result.sets, list(result.sets)))
    if photographs.card.simulated_metadata:
        typer.echo("Metadata are simulated: what they add says nothing about real ones.")
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in result.skipped_full.items())
    typer.echo(f"photographs that skipped FULL: {shares}")
    times = ", ".join(f"{stage} {ms:.1f}" for stage, ms in result.stage_ms.items())
    typer.echo(f"ms a photograph (median of {result.timed}, one thread): {times}")
    if store.has(checked.manifest.run_id):
        for path in sorted(store.download(checked.manifest.run_id, "figures").iterdir()):
            typer.echo(f"figure: {path}")


def compare(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN …", help="Two experiments; or profiles.")] = None,
    profiles: Annotated[str | None, typer.Option(metavar="BUNDLE", help="All profiles of a bundle's name.")] = None,
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Print how much better the second run is than the first, with paired bootstrap intervals by group; or profiles
    side by side.

    Examples: l2r2 compare RUN_ID RUN_ID; l2r2 compare --profiles demo
    """
    from l2r2.experiments.compare import compare_profiles, compare_runs, profile_runs
    from l2r2.tracking import Store

    store, ids = Store(tracking_uri), runs or []
    if profiles is not None and ids:
        raise ConfigError("give either runs or --profiles BUNDLE")
    if profiles is not None or (ids and all(store.tags_of(run_id).get("kind") == "profile" for run_id in ids)):
        side_by_side = compare_profiles(store, ids or profile_runs(store, str(profiles)))
        typer.echo(json.dumps(asdict(side_by_side), ensure_ascii=False) if as_json else side_by_side.markdown())
        return
    if len(ids) != 2:
        raise ConfigError(f"{len(ids)} runs to compare; expected two experiments, or profiles of l2r2 profile")
    first, second = ids
    found = compare_runs(store, first, second)
    if as_json:
        typer.echo(json.dumps([asdict(difference) for difference in found], ensure_ascii=False))
        return
    table = Table(title="second minus first, in points of accuracy; 95 % paired bootstrap by group")
    for column in ("set", "first", "second", "first %", "second %", "difference", "interval", "n"):
        table.add_column(column, justify="left" if column in {"set", "first", "second"} else "right")
    for d in found:
        i = d.difference
        table.add_row(
            d.split, d.first, d.second, f"{100 * d.first_accuracy:.1f}", f"{100 * d.second_accuracy:.1f}",
            f"{100 * i.value:+.1f}", f"{100 * i.low:+.1f} … {100 * i.high:+.1f}", f"{i.n} ({i.groups})",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 120).print(table)


def bundle(folder: Path, as_json: Json = False) -> None:
    """Check a bundle, every checksum included, and say what is in it.

    Example: l2r2 bundle mlruns/bundles/demo
    """
    found = load_bundle(folder)
    manifest = found.manifest
    if as_json:
        typer.echo(manifest.model_dump_json())
        return
    policy = manifest.policy
    typer.echo(f"{manifest.name} {found.version}: {len(manifest.class_names)} classes, made {manifest.created}")
    for stage, view in manifest.views.items():
        typer.echo(f"  {stage} looks at {view} with {manifest.model_names[stage]}")
    typer.echo(f"  FULL runs when FG's confidence is at most {policy.threshold:.3f}; then {policy.operator}")
    for deployment in manifest.deployments:
        stages = ", ".join(f"{stage} {model.precision}" for stage, model in deployment.models.items())
        state = "" if deployment.decisions or deployment is manifest.reference else ", never compared"
        serving = ", serves" if deployment.name == manifest.serving else ""
        typer.echo(f"  {deployment.name}: {stages}{state}{serving}")
    for source, values in manifest.prior.vocabularies.items():
        simulated = " (simulated)" if manifest.prior.simulated else ""
        shown = sorted(values, key=lambda value: (len(value), value)) if source == "month" else values
        typer.echo(f"  {source}{simulated}: {', '.join(shown[:12])}{' …' if len(shown) > 12 else ''}")
    typer.echo(f"  data {manifest.dataset} {manifest.dataset_digest}, run {manifest.run_id}")


def _overrides(pairs: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r} has no value; expected NAME=VALUE, such as train.epochs=5")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return values
