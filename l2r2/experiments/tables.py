"""Accuracy of every system on every set, with intervals; and the predictions behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import polars as pl

from l2r2.experiments.splits import Split
from l2r2.experiments.systems import Systems
from l2r2.fusion import oracle
from l2r2.metrics import Interval, bootstrap, ece, macro_accuracy, nll
from l2r2.types import Stage

ORACLE = "Oracle"


def predictions(systems: Systems, splits: Mapping[str, Split]) -> pl.DataFrame:
    """One row a photograph and system: digest, split, group, system, correct, predicted, confidence, label.

    The Oracle has no prediction of its own: its `predicted` and `confidence` are null.
    """
    frames = []
    for split in splits.values():
        known = {"digest": split.digests, "split": split.name, "group": split.groups, "label": split.labels}
        answers = systems.answers(split)
        for name, belief in answers.items():
            answer = belief.argmax(axis=1)
            frames.append(
                pl.DataFrame(known).with_columns(
                    system=pl.lit(name),
                    correct=pl.Series(answer == split.labels),
                    predicted=pl.Series(answer.astype(np.int64)),
                    confidence=pl.Series(np.exp(belief.max(axis=1)).astype(np.float64)),
                )
            )
        right = oracle(answers["FG"], answers["FULL"], split.labels)
        frames.append(
            pl.DataFrame(known).with_columns(
                system=pl.lit(ORACLE),
                correct=pl.Series(right),
                predicted=pl.lit(None, pl.Int64),
                confidence=pl.lit(None, pl.Float64),
            )
        )
    return pl.concat(frames)


def accuracies(table: pl.DataFrame) -> dict[str, dict[str, Interval]]:
    """Split → system → accuracy, in the table's order of systems."""
    found: dict[str, dict[str, Interval]] = {}
    for (split, system), part in table.partition_by("split", "system", as_dict=True, maintain_order=True).items():
        found.setdefault(str(split), {})[str(system)] = bootstrap(part["correct"].to_numpy(), part["group"].to_numpy())
    return found


def metrics(systems: Systems, splits: Mapping[str, Split], table: pl.DataFrame) -> dict[str, float]:
    """`<split>/<system>/value`, low, high and n for all; nll, ece and macro accuracy for FG, FULL and the cascade."""
    values: dict[str, float] = {}
    for name, rows in accuracies(table).items():
        for system, interval in rows.items():
            bounds = asdict(interval)
            values |= {f"{name}/{system}/{part}": bounds[part] for part in ("value", "low", "high", "n")}
    for split in splits.values():
        answers = systems.answers(split)
        for system in (str(Stage.FG), str(Stage.FULL), "cascade", "cascade+metadata"):
            belief = answers[system]
            values[f"{split.name}/{system}/nll"] = nll(belief, split.labels)
            values[f"{split.name}/{system}/ece"] = ece(belief, split.labels)
            values[f"{split.name}/{system}/macro"] = macro_accuracy(belief.argmax(axis=1) == split.labels, split.labels)
    return values


def markdown(found: Mapping[str, Mapping[str, Interval]], sets: list[str]) -> str:
    """A table: systems down, sets across; accuracy in %, 95 % interval by group."""
    names = list(dict.fromkeys(system for name in sets for system in found[name]))
    first = next(iter(found[sets[0]].values()))
    lines = [
        f"Accuracy in %, 95 % bootstrap intervals by group; n = {first.n} photographs of {first.groups} groups a set.",
        "",
        "| system | " + " | ".join(sets) + " |",
        "|---|" + "---|" * len(sets),
    ]
    for name in names:
        cells = [_cell(found[s][name]) if name in found[s] else "" for s in sets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
