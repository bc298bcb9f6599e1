"""The logits of every classifier, split by split: all that fitting and judging look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int

from l2r2.datasets import Dataset
from l2r2.types import Metadata, View

Member = tuple[View, int]
"""A classifier: its view and which seed, 0 being the deployed one."""

CROSSFIT = "crossfit"
"""Name of the split that holds train's photographs with logits of classifiers that never saw them."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split with the logits of every classifier; rows in the data set's order."""

    name: str
    digests: Sequence[str]
    labels: Int[np.ndarray, " n"]
    groups: np.ndarray
    found: Bool[np.ndarray, " n"]
    metadata: Sequence[Metadata]
    logits: Mapping[Member, Float32[np.ndarray, "n k"]]

    def take(self, chosen: Bool[np.ndarray, " n"], name: str) -> Split:
        """Some of the rows."""
        rows = np.flatnonzero(chosen).tolist()
        return Split(
            name,
            [self.digests[i] for i in rows],
            self.labels[rows],
            self.groups[rows],
            self.found[rows],
            [self.metadata[i] for i in rows],
            {member: logits[rows] for member, logits in self.logits.items()},
        )

    def halves(self) -> tuple[Split, Split]:
        """Two parts with about as many groups each, always the same."""
        names = np.unique(self.groups)
        first = np.random.default_rng(0).permutation(len(names))[: (len(names) + 1) // 2]
        chosen = np.isin(self.groups, names[first])
        return self.take(chosen, f"{self.name}, first half"), self.take(~chosen, f"{self.name}, second half")


def load_splits(
    dataset: Dataset,
    tables: Mapping[Member, Path],
    sources: Sequence[str],
    crossfit: Mapping[Member, Path] | None = None,
) -> dict[str, Split]:
    """Join the classifiers' logits tables with the data set, by digest.

    Args:
        tables: One a classifier.
        crossfit: Logits of train's photographs from classifiers that never saw them; becomes the split `CROSSFIT`.
    """
    # Two copies of a photograph in one split have one row of logits each, and the same.
    frames = {member: pl.read_parquet(path).unique(["digest", "split"]) for member, path in tables.items()}
    first = next(iter(frames.values()))
    splits = {name: _join(name, dataset.split(name), frames, sources) for name in first["split"].unique().sort()}
    if crossfit:
        held_out = {
            member: pl.read_parquet(path).unique("digest").with_columns(split=pl.lit("train"))
            for member, path in crossfit.items()
        }
        splits[CROSSFIT] = _join("train", dataset.split("train"), held_out, sources, CROSSFIT)
    return splits


def _join(
    name: str, part: Dataset, frames: Mapping[Member, pl.DataFrame], sources: Sequence[str], as_: str | None = None
) -> Split:
    order = part.table.select("digest")
    parts = {
        member: order.join(frame.filter(pl.col("split") == name), "digest", how="left", maintain_order="left")
        for member, frame in frames.items()
    }
    some = next(iter(parts.values()))
    return Split(
        name=as_ or name,
        digests=part.table["digest"].to_list(),
        labels=part.labels(),
        groups=part.groups(),
        found=some["found"].to_numpy().astype(bool),
        metadata=part.metadata(sources),
        logits={member: frame["logits"].to_numpy().astype(np.float32) for member, frame in parts.items()},
    )
