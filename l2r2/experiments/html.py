"""One run as one page: tables and figures in a single file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from PIL import Image

from l2r2.experiments.better import Line, cells
from l2r2.metrics import Interval

TEMPLATE = Path(__file__).with_name("report.html.jinja")

HEAVY = 300_000
"""Bytes from which a PNG is one of photographs."""

MAIN = ("FULL", "FG", "cascade", "cascade+metadata")


def page(
    title: str,
    facts: Mapping[str, str],
    accuracy: Mapping[str, Mapping[str, Interval]],
    sets: Sequence[str],
    lines: Sequence[Line],
    results: pl.DataFrame,
    pictures: Sequence[Path],
    *,
    simulated: bool,
) -> str:
    """Fill the template.

    Args:
        facts: What to show on top.
        accuracy: Split → system → interval.
        sets: Splits in the order of the columns.
        lines: As `l2r2.experiments.better` makes them.
        results: As `l2r2.experiments.results.results` makes them.
        pictures: PNG files; they are embedded.
        simulated: Whether metadata are.
    """
    from jinja2 import Environment

    systems = list(dict.fromkeys(system for name in sets for system in accuracy[name]))
    first = {name: next(iter(accuracy[name].values())) for name in sets}
    columns, rows, seeds = _over_seeds(results)
    return (
        Environment(autoescape=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=title,
            facts=facts,
            simulated=simulated,
            sets=sets,
            counts={name: (interval.n, interval.groups) for name, interval in first.items()},
            main=MAIN,
            accuracy=[[system, *(_cell(accuracy[name].get(system)) for name in sets)] for system in systems],
            columns=columns,
            results=rows,
            seeds=seeds,
            lines=[cells(line) for line in lines],
            pictures=[(path.stem, _embedded(path)) for path in pictures],
        )
    )


def _embedded(path: Path) -> str:
    """A picture as a data URI; photographs as JPEG, which is a fifth of the PNG."""
    data, kind = path.read_bytes(), "png"
    if len(data) > HEAVY:
        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=85)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _over_seeds(results: pl.DataFrame) -> tuple[list[str], list[list[str]], int]:
    means = results.group_by("split", "metric", "system", maintain_order=True).agg(
        pl.col("value").mean().alias("mean"), pl.col("value").std().alias("std"), pl.len().alias("seeds")
    )
    columns = list(dict.fromkeys((row["split"], row["metric"]) for row in means.iter_rows(named=True)))
    table: dict[str, dict[tuple[str, str], str]] = {}
    for row in means.iter_rows(named=True):
        spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
        table.setdefault(row["system"], {})[row["split"], row["metric"]] = f"{100 * row['mean']:.1f}{spread}"
    rows = [[system, *(found.get(column, "") for column in columns)] for system, found in table.items()]
    most = means["seeds"].max()
    return [" ".join(column) for column in columns], rows, int(most) if isinstance(most, int) else 0


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
