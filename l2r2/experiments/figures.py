"""The figures of one experiment. Each function writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from l2r2.cascade import trade_off
from l2r2.experiments.splits import Split
from l2r2.experiments.systems import Systems
from l2r2.files import whole_file
from l2r2.logspace import LogProbs, log_normalize
from l2r2.metrics import Labels, reliability
from l2r2.types import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability_diagrams(systems: Systems, val: Split, path: Path) -> None:
    """Confidence against accuracy of FG and FULL, before and after temperature scaling, on validation."""
    nothing = np.zeros_like(val.logits[systems.fg_full.first])
    calibrated = systems.fg_full.evidence(val, nothing)
    figure, axes = new_figure(1, 2, 8, 4)
    for axis, stage, evidence in zip(axes.flat, (Stage.FG, Stage.FULL), calibrated, strict=True):
        for name, belief in (("before", log_normalize(evidence.logits)), ("after", evidence.belief)):
            _reliability(axis, belief, val.labels, name)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axis.set(title=f"{stage} on val (n = {len(val.labels)})", xlabel="confidence", ylabel="accuracy")
        axis.legend(title="temperature scaling")
    save_figure(figure, path)


def confusion_matrices(answers: Mapping[str, LogProbs], split: Split, class_names: Sequence[str], path: Path) -> None:
    """Rows are the truth; counts. Above 30 classes the numbers are left out."""
    shown = [name for name in ("FULL", "FG", "cascade") if name in answers]
    k = len(class_names)
    figure, axes = new_figure(1, len(shown), 4 * len(shown), 4.8)
    for axis, name in zip(axes.flat, shown, strict=True):
        counts = np.zeros((k, k), dtype=int)
        np.add.at(counts, (split.labels, answers[name].argmax(axis=1)), 1)
        axis.imshow(counts, cmap="Blues")
        if k <= 30:
            for i, j in np.ndindex(k, k):
                axis.text(
                    j,
                    i,
                    str(counts[i, j]),
                    ha="center",
                    va="center",
                    color="white" if counts[i, j] > counts.max() / 2 else "black",
                )
            axis.set_xticks(range(k), class_names, rotation=45, ha="right")
            axis.set_yticks(range(k), class_names)
        axis.set(title=f"{name} on {split.name}", xlabel="answer", ylabel="truth")
    save_figure(figure, path)


def cost_curve(systems: Systems, splits: Mapping[str, Split], path: Path) -> None:
    """Accuracy against the share of photographs that run FULL, one line a set; a dot where the chosen gate is."""
    figure, axes = new_figure(1, 1, 6, 4.5)
    axis = axes.flat[0]
    for split in splits.values():
        nothing = np.zeros_like(split.logits[systems.fg_full.first])
        fg, full = systems.fg_full.evidence(split, nothing)
        curve = trade_off(fg, full, split.found, split.labels, systems.policy.operator, nothing)
        (line,) = axis.plot(
            100 * curve.escalated, 100 * curve.accuracy, label=f"{split.name} (n = {len(split.labels)})"
        )
        decision = systems.policy.decide(*systems.deployed(split), split.found, nothing)
        right = (decision.belief.argmax(axis=1) == split.labels).mean()
        axis.plot(100 * (1 - decision.skipped_full.mean()), 100 * right, "o", color=line.get_color())
    axis.set(
        xlabel="photographs that run FULL, %",
        ylabel="accuracy, %",
        title=f"gate at {systems.policy.threshold:.2f} (dots)",
    )
    axis.legend(loc="center right")
    save_figure(figure, path)


def weights_of_wl(weights: pl.DataFrame, path: Path) -> None:
    """⊕WL's weights of FG and FULL, one pair a class, by FULL's share of the two (the paper's figure 8)."""
    fg, full = weights["w_fg"].to_numpy(), weights["w_full"].to_numpy()
    order = np.argsort(full - fg)
    k = len(order)
    figure, axes = new_figure(1, 1, max(6, min(0.25 * k, 16)), 4.5)
    axis = axes.flat[0]
    axis.bar(np.arange(k) - 0.2, fg[order], 0.4, label="FG")
    axis.bar(np.arange(k) + 0.2, full[order], 0.4, label="FULL")
    if k <= 60:
        axis.set_xticks(range(k), [weights["class"][int(i)] for i in order], rotation=60, ha="right")
    heavier = int((full > fg).sum())
    axis.set(ylabel="weight", title=f"FULL weighs more than FG for {heavier} of {k} classes")
    axis.legend()
    save_figure(figure, path)


def _reliability(axis: Axes, belief: LogProbs, labels: Labels, name: str) -> None:
    bins = reliability(belief, labels)
    some = bins.count > 0
    axis.plot(bins.confidence[some], bins.accuracy[some], "o-", label=f"{name}: ECE {bins.ece:.3f}")


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of width × height inches with rows × columns axes; free of pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write as PNG, whole or not at all."""
    with whole_file(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
