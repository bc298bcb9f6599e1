"""Two runs, photograph by photograph: who is better, and is it more than chance?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from l2r2.errors import ArtifactError, InputError
from l2r2.metrics import Interval, bootstrap
from l2r2.tracking import Store


@dataclass(frozen=True, slots=True)
class Difference:
    """Second run minus first, in accuracy, on the photographs that both judged."""

    split: str
    first: str
    second: str
    first_accuracy: float
    second_accuracy: float
    difference: Interval


def compare_runs(store: Store, first: str, second: str) -> list[Difference]:
    """Paired differences with bootstrap intervals by group.

    Parents are compared system by system; a classifier's run is compared as itself.

    Raises:
        InputError: no such run, or the runs judged no photograph in common.
        ArtifactError: a run has neither predictions nor logits.
    """
    a, b = _predictions(store, first), _predictions(store, second)
    if a["system"].n_unique() == 1 or b["system"].n_unique() == 1:
        pairs = [
            (x, y) for x in a["system"].unique(maintain_order=True) for y in b["system"].unique(maintain_order=True)
        ]
    else:
        pairs = [(name, name) for name in a["system"].unique(maintain_order=True) if name in set(b["system"])]
    found = []
    for x, y in pairs:
        joined = a.filter(pl.col("system") == x).join(b.filter(pl.col("system") == y), ["digest", "split"], suffix="_b")
        for (split,), part in joined.partition_by("split", as_dict=True, maintain_order=True).items():
            right = part["correct"].to_numpy().astype(float), part["correct_b"].to_numpy().astype(float)
            found.append(
                Difference(
                    str(split),
                    x,
                    y,
                    float(right[0].mean()),
                    float(right[1].mean()),
                    bootstrap(right[1] - right[0], part["group"].to_numpy()),
                )
            )
    if not found:
        raise InputError(f"runs {first} and {second} judged no photograph in common; are they of one data set?")
    return found


def _predictions(store: Store, run_id: str) -> pl.DataFrame:
    tags = store.tags_of(run_id)
    if tags.get("kind") == "experiment":
        return pl.read_parquet(store.download(run_id, "tables/predictions.parquet"))
    if tags.get("kind") == "classifier":
        table = pl.read_parquet(Path(store.download(run_id, "logits.parquet"))).filter(pl.col("split") != "train")
        answer = table["logits"].to_numpy().argmax(axis=1).astype(np.int64)
        return table.drop("logits").with_columns(
            system=pl.lit(store.name_of(run_id)),
            predicted=pl.Series(answer),
            correct=pl.Series(answer) == pl.col("label"),
        )
    raise ArtifactError(f"run {run_id} has no predictions; expected a run of l2r2 train")
