"""The paper's figures that measure something, drawn from tracked runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from l2r2.errors import ArtifactError, InputError
from l2r2.experiments.by_candidates import COUNTS
from l2r2.experiments.paper.cells import Need
from l2r2.experiments.paper.gathering import tracked
from l2r2.experiments.report import PER_CLASS, WL_WEIGHTS
from l2r2.files import whole_file
from l2r2.tracking import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHIFTED, CHANGES = "lt", ("FG_C", "BG_S", "FG_C⊕* BG_S")
"""Figure 12: the test set, and the systems held against FULL."""

FIGURES = {
    8: "FungiTastic: weights of ⊕WL, class by class",
    11: "Hard ImageNet: classes that a detector finds in one photograph",
    12: "Hard ImageNet, long tail: accuracy against FULL, class by class",
}
"""Figure → what it shows; the paper's others are photographs and drawings."""

_HARD = "hard-imagenet"
_NEEDS = {
    8: (Need("fungi", "fungitastic-mini"),),
    11: (Need("hard-imagenet-topk-owl", _HARD), Need("hard-imagenet-topk-dino", _HARD)),
    12: (Need("hard-imagenet-gt", _HARD),),
}


def figure_needs(number: int) -> list[Need]:
    """Every experiment that a figure is drawn from.

    Raises:
        InputError: no figure of that number is drawn here.
    """
    if number not in _NEEDS:
        known = ", ".join(str(n) for n in FIGURES)
        raise InputError(f"figure {number} is not one that runs can draw; expected one of {known}")
    return list(_NEEDS[number])


def draw_figure(store: Store, number: int, path: Path) -> list[Need]:
    """Draw a figure from the newest finished runs; the suffix says how (.png, .pdf, .svg).

    Returns:
        Experiments that are missing, where the figure is not of one alone and was drawn without them.
    Raises:
        InputError: no figure of that number is drawn here, or the suffix is none of the three.
        ArtifactError: nothing is tracked that it could be drawn from; the message says what is needed.
    """
    needs = figure_needs(number)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in {"png", "pdf", "svg"}:
        raise InputError(f"figure file is {path.name!r}; expected a name that ends in .png, .pdf or .svg")
    runs = tracked(store, needs)
    if not runs:
        raise ArtifactError(f"figure {number} needs: " + "; or ".join(str(need) for need in needs))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    artifact, draw = {8: (WL_WEIGHTS, _weights), 11: (COUNTS, _found), 12: (PER_CLASS, _changes)}[number]
    tables = {need: pl.read_parquet(store.download(run_id, artifact)) for need, run_id in runs.items()}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots(), tables)
    with whole_file(path) as beside:
        figure.savefig(beside, format=kind, dpi=110)
    return [need for need in needs if need not in runs]


def _weights(axis: Axes, tables: Mapping[Need, pl.DataFrame]) -> None:
    (weights,) = tables.values()
    weights = weights.sort(pl.col("w_fg") - pl.col("w_full"), descending=True)
    for column, name in (("w_fg", "FG"), ("w_full", "FULL")):
        axis.plot(range(len(weights)), weights[column], ".", label=name)
    share = 100 * np.mean(weights["w_full"].to_numpy() > weights["w_fg"].to_numpy())
    axis.set(
        xlabel=f"{len(weights)} classes, by w_FG - w_FULL",
        ylabel="weight of the logit",
        title=f"FULL weighs more than FG in {share:.0f} % of the classes (the paper: about 15 %)",
    )
    axis.legend()


def _found(axis: Axes, tables: Mapping[Need, pl.DataFrame]) -> None:
    counts = {need: np.bincount(table["found"].to_numpy()) for need, table in tables.items()}
    top = max(len(count) for count in counts.values())
    width = 0.8 / len(tables)
    for i, (need, count) in enumerate(counts.items()):
        n, found = count.sum(), np.arange(len(count))
        name = f"{need.recipe}: mean {(found * count).sum() / n:.2f}, n = {n}"
        axis.bar(found + (i - (len(tables) - 1) / 2) * width, 100 * count / n, width, label=name)
    axis.set(xlabel="classes found in a photograph, each prompted", ylabel="photographs, %")
    axis.set_title("the paper: one mask in 51.3 % of the photographs with OWLv2")
    axis.set_xticks(range(top))
    axis.legend()


def _changes(axis: Axes, tables: Mapping[Need, pl.DataFrame]) -> None:
    (table,) = tables.values()
    shifted = table.filter(pl.col("split") == SHIFTED)
    absent = [system for system in ("FULL", *CHANGES) if system not in set(shifted["system"])]
    if absent:
        raise ArtifactError(f"figure 12 needs accuracies of {absent[0]} on {SHIFTED!r}, which the run does not have")
    full = shifted.filter(pl.col("system") == "FULL").select("class", base="accuracy")
    width = 0.8 / len(CHANGES)
    for i, system in enumerate(CHANGES):
        part = shifted.filter(pl.col("system") == system)
        part = full.join(part, on="class", how="left", maintain_order="left")
        change = 100 * (part["accuracy"] - part["base"]).to_numpy()
        mean = np.average(change, weights=part["n"].to_numpy())
        axis.bar(np.arange(len(part)) + (i - 1) * width, change, width, label=f"{system}: {mean:+.1f} in all")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(full)), full["class"], rotation=45, ha="right")
    axis.set(ylabel="accuracy minus FULL's, points", title=f"{SHIFTED} (the paper: FG_C +5.5, combined +8)")
    axis.legend()
