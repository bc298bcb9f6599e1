"""A filled table as Markdown, in the paper's own shape, and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from l2r2.experiments.paper.gathering import Filled

LEGEND = (
    "In %: ours, mean over seeds ± sample standard deviation (n - 1; the paper does not say which it prints), then the "
    "paper's ± as printed, and the difference in points. —: nothing tracked yet."
)


def markdown(filled: Filled) -> str:
    """Rows and columns as in the paper; below, the runs behind it, what is missing, and the paper's own slips."""
    cells = filled.cells
    columns = cells["column"].unique(maintain_order=True).to_list()
    by_place = {(cell["row"], cell["column"]): cell for cell in cells.iter_rows(named=True)}
    lines = [
        f"## Table {filled.number}. {filled.title}",
        "",
        LEGEND,
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row in cells["row"].unique(maintain_order=True):
        shown = [_cell(by_place[row, column]) if (row, column) in by_place else "" for column in columns]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    for title, items in (
        ("Runs", list(_runs(filled))),
        ("Missing", [f"needs: {need}" for need in filled.missing]),
        ("Notes on the paper", list(_notes(cells))),
    ):
        if items:
            lines += ["", f"{title}:", "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"


def as_values(filled: Filled) -> dict[str, Any]:
    """What JSON can hold: number, title, cells, runs, missing."""
    return {
        "table": filled.number,
        "title": filled.title,
        "cells": filled.cells.to_dicts(),
        "runs": [{"recipe": n.recipe, "dataset": n.dataset, "run_id": run_id} for n, run_id in filled.runs.items()],
        "missing": [{"recipe": n.recipe, "dataset": n.dataset} for n in filled.missing],
    }


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:  # ours alone
        return "—" if cell["ours"] is None else _spread(cell["ours"], cell["ours_std"])
    paper = f"paper {_spread(cell['value'], cell['std'])}"
    if cell["ours"] is None:
        return f"— ({paper})"
    return f"{_spread(cell['ours'], cell['ours_std'])} ({paper}, {cell['difference']:+.2f})"


def _spread(value: float, std: float | None) -> str:
    return f"{value:.2f}" if std is None else f"{value:.2f} ± {std:.2f}"


def _runs(filled: Filled) -> Iterator[str]:
    for need, run_id in filled.runs.items():
        part = filled.cells.filter(pl.col("recipe") == need.recipe, pl.col("dataset") == need.dataset)
        known = part.filter(pl.col("n").is_not_null())
        sizes = dict(known.select("split", "n").unique("split", maintain_order=True).iter_rows())
        seeds = max(known["seeds"].to_list(), default=0)
        counts = ", ".join(f"{split} n = {n}" for split, n in sizes.items())
        size = f", {seeds} seed{'s' * (seeds != 1)}; {counts}" if counts else ""
        yield f"{need.recipe} on {need.dataset}: run {run_id}{size}"
        absent = part.filter(pl.col("ours").is_null())
        if len(absent):
            first = absent.row(0, named=True)
            where = f"first {first['system']} on {first['split']} ({first['metric']})"
            yield f"{need.recipe} on {need.dataset}: that run lacks {len(absent)} of the {len(part)} cells, {where}"


def _notes(cells: pl.DataFrame) -> Iterator[str]:
    for cell in cells.filter(pl.col("note").is_not_null()).iter_rows(named=True):
        yield f"{cell['row']}, {cell['column']}: {cell['note']}"
