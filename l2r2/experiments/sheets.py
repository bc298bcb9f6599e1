"""Sheets of photographs on which the systems disagree (after the paper's figures 2, 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from l2r2.datasets import Dataset
from l2r2.experiments.figures import new_figure, save_figure
from l2r2.experiments.splits import Split
from l2r2.experiments.systems import Systems
from l2r2.images import read
from l2r2.logspace import LogProbs
from l2r2.types import Region, View

COLUMNS, SHOWN = 6, 18

TITLES = {
    "only-fg": "right by FG alone; FULL (and BG, where there is one) is wrong",
    "only-full": "right by FULL alone; FG is wrong",
    "fg-and-bg": "right by FG and by BG, though FULL is wrong",
    "flipped-by-prior": "the metadata changed the cascade's answer",
    "withheld": "withheld: a hazardous class is possible and FG is unsure",
}


def choices(
    answers: Mapping[str, LogProbs], split: Split, systems: Systems | None = None
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Sheet → which photographs of the split belong on it. Sheets that make no sense for the recipe are left out.

    Args:
        answers: With FG and FULL, and whatever else there is.
        systems: What was fitted, if anything was.
    """
    right = {name: belief.argmax(axis=1) == split.labels for name, belief in answers.items()}
    backgrounds = [right[view] for view in (View.BG_S, View.BG_B) if view in right]
    any_bg = np.logical_or.reduce(backgrounds) if backgrounds else np.zeros(len(split.labels), dtype=bool)
    found = {
        "only-fg": right["FG"] & ~right["FULL"] & ~any_bg,
        "only-full": right["FULL"] & ~right["FG"],
    }
    if backgrounds:
        found["fg-and-bg"] = right["FG"] & any_bg & ~right["FULL"]
    if "cascade+metadata" in answers:
        found["flipped-by-prior"] = answers["cascade+metadata"].argmax(axis=1) != answers["cascade"].argmax(axis=1)
    if systems is not None and systems.policy.veto is not None:
        prior = systems.priors.log_prior(split.metadata)
        found["withheld"] = systems.policy.decide(*systems.deployed(split), split.found, prior).withheld
    return found


def sheet(
    dataset: Dataset,
    regions: Mapping[str, Region | None],
    answers: Mapping[str, LogProbs],
    split: Split,
    chosen: Bool[np.ndarray, " n"],
    name: str,
    path: Path,
) -> None:
    """`SHOWN` of the chosen photographs, evenly spread, with box, truth and what FG, FULL and the cascade say; nothing
    is written where none is chosen.
    """
    places = np.flatnonzero(chosen)
    if not len(places):
        return
    places = places[np.unique(np.linspace(0, len(places) - 1, min(SHOWN, len(places))).round().astype(int))]
    part, names = dataset.split(split.name), dataset.class_names
    paths = part.paths()
    rows = -(-len(places) // COLUMNS)
    figure, axes = new_figure(rows, COLUMNS, 16, 3.3 * rows + 0.5)
    figure.suptitle(f"{TITLES[name]}: {int(chosen.sum())} of {len(chosen)} on {split.name}", fontsize=11)
    for axis in axes.flat:
        axis.axis("off")
    joined = "cascade+metadata" if name in {"flipped-by-prior", "withheld"} else "cascade"
    systems = ["FG", "FULL", joined if joined in answers else "FG⊕max FULL"]
    for axis, i in zip(axes.flat, places, strict=False):
        axis.imshow(read(paths[i]))
        region = regions[split.digests[i]]
        if region is not None:
            x0, y0, x1, y1 = region.box_xyxy_px
            axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="yellow", linewidth=1.5)
        lines = [names[split.labels[i]]]
        for system in systems:
            belief = answers[system][i]
            best = int(belief.argmax())
            mark = "✓" if best == split.labels[i] else "✗"
            lines.append(f"{mark} {system} {names[best]} {np.exp(belief[best]):.2f}")
        if name == "flipped-by-prior":
            known = split.metadata[i]
            lines.append(", ".join(f"{source} {value}" for source, value in known.items()) or "no metadata")
        axis.set_title("\n".join(lines), fontsize=7, loc="left")
    save_figure(figure, path)
