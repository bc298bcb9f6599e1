"""The figures of one experiment. Each function writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from l2r2.cascade import trade_off
from l2r2.datasets import Dataset
from l2r2.experiments.splits import Split
from l2r2.experiments.systems import Systems
from l2r2.files import whole_file
from l2r2.images import read
from l2r2.logspace import LogProbs, log_normalize
from l2r2.metrics import Labels, reliability
from l2r2.types import Region, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability_diagrams(systems: Systems, val: Split, path: Path) -> None:
    """Confidence against accuracy of FG and FULL, before and after temperature scaling, on validation."""
    nothing = np.zeros_like(val.logits[systems.fg_full.first])
    calibrated = systems.fg_full.evidence(val, nothing)
    figure, axes = _figure(1, 2, 8, 4)
    for axis, stage, evidence in zip(axes.flat, (Stage.FG, Stage.FULL), calibrated, strict=True):
        for name, belief in (("before", log_normalize(evidence.logits)), ("after", evidence.belief)):
            _reliability(axis, belief, val.labels, name)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        axis.set(title=f"{stage} on val (n = {len(val.labels)})", xlabel="confidence", ylabel="accuracy")
        axis.legend(title="temperature scaling")
    _save(figure, path)


def confusion_matrices(answers: Mapping[str, LogProbs], split: Split, class_names: Sequence[str], path: Path) -> None:
    """Rows are the truth; counts. Above 30 classes the numbers are left out."""
    shown = [name for name in ("FULL", "FG", "cascade") if name in answers]
    k = len(class_names)
    figure, axes = _figure(1, len(shown), 4 * len(shown), 4.8)
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
    _save(figure, path)


def cost_curve(systems: Systems, splits: Mapping[str, Split], path: Path) -> None:
    """Accuracy against the share of photographs that run FULL, one line a set; a dot where the chosen gate is."""
    figure, axes = _figure(1, 1, 6, 4.5)
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
    _save(figure, path)


def contact_sheet(
    dataset: Dataset, regions: Mapping[str, Region | None], answers: Mapping[str, LogProbs], split: Split, path: Path
) -> None:
    """Photographs of one set with the boxes found: first those that FULL gets wrong and FG right, then the reverse."""
    fg, full = (answers[name].argmax(axis=1) == split.labels for name in ("FG", "FULL"))
    order = np.concatenate(
        [np.flatnonzero(fg & ~full)[:12], np.flatnonzero(full & ~fg)[:6], np.flatnonzero(fg & full)[:6]]
    )
    part = dataset.split(split.name)
    paths, names = part.paths(), dataset.class_names
    figure, axes = _figure(max(1, -(-len(order) // 6)), 6, 15, 2.9 * max(1, -(-len(order) // 6)))
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, order, strict=False):
        photo = read(paths[i])
        axis.imshow(np.asarray(Image.fromarray(photo)))
        region = regions[split.digests[i]]
        if region is not None:
            x0, y0, x1, y1 = region.box_xyxy_px
            axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="yellow", linewidth=1.5)
        said = {name: names[int(answers[name][i].argmax())] for name in ("FG", "FULL")}
        axis.set_title(f"{names[split.labels[i]]}: FG {said['FG']}, FULL {said['FULL']}", fontsize=8)
    _save(figure, path)


def _reliability(axis: Axes, belief: LogProbs, labels: Labels, name: str) -> None:
    bins = reliability(belief, labels)
    some = bins.count > 0
    axis.plot(bins.confidence[some], bins.accuracy[some], "o-", label=f"{name}: ECE {bins.ece:.3f}")


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
