"""`l2r2 experiments list | table | figure | run`: the paper's tables and figures from tracked runs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2r2.cli.progress import progress_bars

if TYPE_CHECKING:
    from l2r2.experiments.paper import Need
    from l2r2.tracking import Store

Number = Annotated[int, typer.Argument(help="As the paper counts them.")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow store; default sqlite:///mlruns/mlflow.db.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

EXPERIMENT = "paper"
"""MLflow experiment in which printed tables are kept."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="The paper's tables and figures, ours beside them.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("table")(table)
    group.command("figure")(figure)
    group.command("run")(run)
    app.add_typer(group, name="experiments")


def list_(tracking_uri: Uri = None, as_json: Json = False) -> None:
    """Name every table and figure, the recipes and data sets they need, and what is tracked already.

    Example: l2r2 experiments list
    """
    from l2r2.experiments.paper import FIGURES, TITLES, figure_needs, table_needs, tracked
    from l2r2.tracking import Store

    found: list[tuple[str, int, str, list[Need]]] = [
        *(("table", number, title, table_needs(number)) for number, title in TITLES.items()),
        *(("figure", number, title, figure_needs(number)) for number, title in FIGURES.items()),
    ]
    runs = tracked(Store(tracking_uri), dict.fromkeys(need for *_, needs in found for need in needs))
    if as_json:
        values = [
            {
                "kind": kind,
                "number": number,
                "title": title,
                "needs": [{"recipe": n.recipe, "dataset": n.dataset, "run_id": runs.get(n)} for n in needs],
            }
            for kind, number, title, needs in found
        ]
        typer.echo(json.dumps(values, ensure_ascii=False))
        return
    for kind, number, title, needs in found:
        typer.echo(f"{kind} {number}: {title} ({sum(need in runs for need in needs)} of {len(needs)} tracked)")
        for need in needs:
            state = f"run {runs[need]}" if need in runs else "not tracked"
            typer.echo(f"  {need.recipe} on {need.dataset}: {state}")


def table(number: Number, tracking_uri: Uri = None, as_json: Json = False) -> None:
    """Print a table of the paper as Markdown, ours beside the paper's, and keep it as an artifact in MLflow.

    Example: l2r2 experiments table 1
    """
    from l2r2.experiments.paper import as_values, gather, markdown
    from l2r2.tracking import Store

    store = Store(tracking_uri)
    filled = gather(store, number)
    text = markdown(filled)
    _keep(store, number, text)
    typer.echo(json.dumps(as_values(filled), ensure_ascii=False) if as_json else text, nl=as_json)


def figure(
    number: Number,
    out: Annotated[Path, typer.Option("--out", help="File to write: .png, .pdf or .svg.")],
    tracking_uri: Uri = None,
) -> None:
    """Draw a figure of the paper from tracked runs: 8, 11 or 12.

    Example: l2r2 experiments figure 12 --out figure-12.png
    """
    from l2r2.experiments.paper import draw_figure
    from l2r2.tracking import Store

    missing = draw_figure(Store(tracking_uri), number, out)
    typer.echo(str(out))
    for need in missing:
        typer.echo(f"needs: {need}")


def run(
    number: Number,
    data: Annotated[Path, typer.Option("--data", help="Folder that holds the data sets, each under its card's name.")],
    tracking_uri: Uri = None,
    work: Annotated[Path, typer.Option(help="For what is under way; a killed run goes on from there.")] = Path(
        "mlruns/work"
    ),
    as_json: Json = False,
) -> None:
    """Train every recipe that a table needs and that has its data set, in turn; what is done is not done again.

    Example: l2r2 experiments run 1 --data data
    """
    from l2r2.cli.experiments import train_recipe
    from l2r2.experiments.paper import run_needs, table_needs
    from l2r2.tracking import Store

    needs, store = table_needs(number), Store(tracking_uri)

    def train(recipe: str, folder: Path) -> str:
        with progress_bars() as bars:
            return train_recipe(recipe, folder, store, work, bars).run_id

    outcomes = []
    for outcome in run_needs(needs, data, train):
        outcomes.append(outcome)
        if not as_json:
            what = f"run {outcome.run_id}" if outcome.run_id else f"not trained: {outcome.problem}"
            typer.echo(f"{outcome.need.recipe} on {outcome.need.dataset}: {what}")
    if as_json:
        values = [
            {"recipe": o.need.recipe, "dataset": o.need.dataset, "run_id": o.run_id, "problem": o.problem}
            for o in outcomes
        ]
        typer.echo(json.dumps(values, ensure_ascii=False))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _keep(store: Store, number: int, text: str) -> None:
    name = f"table-{number:02d}"
    with (
        tempfile.TemporaryDirectory() as folder,
        store.run(EXPERIMENT, name, {"kind": "table", "table": str(number)}) as kept,
    ):
        path = Path(folder) / f"{name}.md"
        path.write_text(text, encoding="utf-8")
        kept.file(path, "tables")
