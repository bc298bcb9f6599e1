"""What habitat, substrate, month or any other column say about the class, before the photograph is seen."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from l2r2.errors import ArtifactError, DatasetError, InputError
from l2r2.files import write_table
from l2r2.logspace import LogProbs, log_normalize
from l2r2.metrics import Labels, nll
from l2r2.types import Metadata

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Pseudo-counts that `fit_priors` tries."""

ROWS_BYTES = 16 * 2**20
"""Memory for rows of log-ratios that were asked for lately; a request then adds rows instead of scattering counts."""

MAX_STRENGTH = 2.0
"""Upper bound of λ; 1 is Bayes with conditionally independent sources."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceTable:
    """How often each class was seen with each value of one source; rows sparse, so that many classes stay cheap.

    Attributes:
        values: The vocabulary, sorted.
        starts: Row v is entries starts[v] to starts[v + 1].
        classes, counts: The entries.
    """

    values: tuple[str, ...]
    starts: Int[np.ndarray, " v_plus_1"]
    classes: Int[np.ndarray, " entries"]
    counts: Int[np.ndarray, " entries"]

    def place(self, value: str) -> int | None:
        """Where a value stands in the vocabulary; None for one never seen."""
        place = bisect_left(self.values, value)
        return place if place < len(self.values) and self.values[place] == value else None

    def row(self, value: str) -> tuple[Int[np.ndarray, " seen"], Int[np.ndarray, " seen"]] | None:
        """Classes seen with a value and their counts; None for a value never seen."""
        place = self.place(value)
        if place is None:
            return None
        part = slice(self.starts[place], self.starts[place + 1])
        return self.classes[part], self.counts[part]


@dataclass(frozen=True, eq=False)
class Priors:
    """log p(k|x) + λ Σ_s log[ P̃(k|m_s) / P̃(k) ], with P̃(k|m) = (n(k,m) + α P(k)) / (n(m) + α).

    A missing or unseen value is neutral. Counted on the training split only. The sum over sources, λ included, is held
    within ±cap: metadata are a boost, not a filter.

    Attributes:
        class_counts: n(k) on the training split, all positive.
        tables: Source name → counts.
        alpha: Pseudo-count, > 0.
        strength: λ, [0, MAX_STRENGTH]; 0 switches metadata off.
        cap: Nats, > 0; None: no cap.
    """

    class_counts: Int[np.ndarray, " k"]
    tables: Mapping[str, SourceTable]
    alpha: float = 1.0
    strength: float = 1.0
    cap: float | None = None

    def parts(self, metadata: Metadata, at: Int[np.ndarray, " m"]) -> dict[str, Float[np.ndarray, " m"]]:
        """Source → what it adds to the classes `at`, for every source whose value is known; float32.

        They sum to those entries of `log_prior`: where the cap holds the sum, each part shrinks in proportion.
        """
        found = {source: self._row(source, value) for source, value in metadata.items()}
        rows = {source: row[at] for source, row in found.items() if row is not None}
        if self.cap is not None and rows:
            total = np.add.reduce(list(rows.values()))
            shrink = np.float32(self.cap) / np.maximum(np.abs(total), np.float32(self.cap))
            rows = {source: row * shrink for source, row in rows.items()}
        return rows

    def log_prior(self, metadata: Sequence[Metadata]) -> Float[np.ndarray, "n k"]:
        """Sum of the parts, one row a photograph; zeros where nothing is known; float32."""
        rows = np.zeros((len(metadata), len(self.class_counts)), np.float32)
        for row, values in zip(rows, metadata, strict=True):
            for source, value in values.items():
                part = self._row(source, value)
                if part is not None:
                    row += part
            if self.cap is not None:
                np.clip(row, -self.cap, self.cap, out=row)
        return rows

    @cached_property
    def _row(self) -> Callable[[str, str], Float[np.ndarray, " k"] | None]:
        """One value's log-ratios, spread over all classes; the latest stay at hand, in `ROWS_BYTES`."""

        def spread(source: str, value: str) -> Float[np.ndarray, " k"] | None:
            table = self.tables.get(source)
            place = None if table is None else table.place(value)
            if table is None or place is None:
                return None
            bases, boosts = self._log_ratios[source]
            seen = slice(table.starts[place], table.starts[place + 1])
            row = np.full(len(self.class_counts), bases[place], np.float32)
            row[table.classes[seen]] += boosts[seen]
            return row

        return lru_cache(max(1, ROWS_BYTES // (4 * len(self.class_counts))))(spread)

    @cached_property
    def _log_ratios(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Source → one number a value and one an entry, so that a request takes no logarithm.

        Where n(k, m) = 0 the ratio is α / (n(m) + α) whatever the class; where it is not, it is larger by
        1 + n(k, m) / (α P(k)).
        """
        prior = self.class_counts / self.class_counts.sum()
        found = {}
        for source, table in self.tables.items():
            sizes = np.add.reduceat(table.counts, table.starts[:-1])
            bases = self.strength * np.log(self.alpha / (sizes + self.alpha))
            boosts = self.strength * np.log1p(table.counts / (self.alpha * prior[table.classes]))
            found[source] = bases.astype(np.float32), boosts.astype(np.float32)
        return found

    def unrecognized(self, metadata: Metadata) -> tuple[str, ...]:
        """Sources given whose value, or whose name, was never seen."""
        return tuple(
            source
            for source, value in metadata.items()
            if source not in self.tables or self.tables[source].place(value) is None
        )

    def save(self, path: Path) -> None:
        """Write the counts as Parquet: source, value, class, n. Rows without a source are the class totals."""
        k = len(self.class_counts)
        frames = [_frame("", np.full(k, ""), np.arange(k), self.class_counts)]
        for source, table in self.tables.items():
            values = np.repeat(np.asarray(table.values, dtype=object), np.diff(table.starts))
            frames.append(_frame(source, values, table.classes, table.counts))
        write_table(path, pl.concat(frames))

    @staticmethod
    def load(path: Path, alpha: float, strength: float, cap: float | None = None) -> Priors:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, truncated or no such table.
        """
        try:
            frame = pl.read_parquet(path)
            totals = frame.filter(pl.col("source") == "").sort("class")["n"].to_numpy()
            parts = frame.filter(pl.col("source") != "").partition_by("source", as_dict=True, maintain_order=True)
            tables = {str(source): _table(part, "value", "class", "n") for (source,), part in parts.items()}
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ArtifactError(f"{path} is no readable table of priors: {error}") from error
        return Priors(totals, tables, alpha, strength, cap)


def count_priors(labels: Labels, metadata: Mapping[str, Sequence[str | None]], classes: int) -> Priors:
    """Count classes against metadata on the training split.

    Args:
        metadata: Source → one value or None a photograph.
    Raises:
        DatasetError: a class has no photograph.
    """
    totals = np.bincount(labels, minlength=classes)
    if (totals == 0).any():
        raise DatasetError(
            f"class {int(np.argmin(totals))} has no training photograph; every class needs one for its prior"
        )
    tables = {}
    for source, values in metadata.items():
        frame = pl.DataFrame({"value": values, "class": labels}, schema={"value": pl.String, "class": pl.Int64})
        seen = frame.drop_nulls().group_by("value", "class").agg(pl.len().cast(pl.Int64).alias("n"))
        if len(seen):
            tables[source] = _table(seen, "value", "class", "n")
    return Priors(totals, tables)


def fit_priors(priors: Priors, log_probs: LogProbs, metadata: Sequence[Metadata], labels: Labels) -> Priors:
    """Choose α and λ that minimise the NLL on validation; λ = 0 when metadata do not help.

    Args:
        log_probs: Calibrated, of the photographs alone.
    Raises:
        InputError: the arguments disagree in length.
    """
    from scipy.optimize import minimize_scalar

    if not len(log_probs) == len(metadata) == len(labels):
        raise InputError(
            f"{len(log_probs)} photographs, {len(metadata)} metadata, {len(labels)} labels; expected as many"
        )
    best, loss = replace(priors, strength=0.0), nll(log_probs, labels)
    for alpha in ALPHAS:
        unit = replace(priors, alpha=alpha, strength=1.0, cap=None).log_prior(metadata)

        def cost(strength: float, unit: Float[np.ndarray, "n k"] = unit) -> float:
            row = strength * unit
            return nll(
                log_normalize(log_probs + (row if priors.cap is None else row.clip(-priors.cap, priors.cap))), labels
            )

        found = minimize_scalar(cost, bounds=(0.0, MAX_STRENGTH), method="bounded")
        if found.fun < loss:
            best, loss = replace(priors, alpha=alpha, strength=float(found.x)), float(found.fun)
    return best


def df20_scores(
    priors: Priors, probs: Float[np.ndarray, "n k"], metadata: Sequence[Metadata]
) -> Float[np.ndarray, "n k"]:
    """Scores of the published DF20 code, for comparison: p(k|I) Π_m [p(k|I) P(k|m) / Σ_j p(j|I) P(j|m)] / P(k).

    Unsmoothed, and p enters n + 1 times, so this is not Bayes. Unlike that code: counted on training alone, no
    observation dropped, and a missing or unseen value is neutral.
    Source: Picek et al. 2022 (Danish Fungi 2020), section 5; formulas only.
    """
    prior = priors.class_counts / priors.class_counts.sum()
    scores = probs.astype(np.float64).copy()
    for row, image, values in zip(scores, probs, metadata, strict=True):
        for source, value in values.items():
            seen = priors.tables[source].row(value) if source in priors.tables else None
            if seen is None:
                continue
            given = np.zeros(len(prior))
            given[seen[0]] = seen[1] / seen[1].sum()
            joint = image * given
            if joint.sum() > 0:
                row *= joint / joint.sum() / prior
    return scores


def _frame(source: str, values: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {"source": [source] * len(counts), "value": list(values), "class": classes, "n": counts},
        schema={"source": pl.String, "value": pl.String, "class": pl.Int64, "n": pl.Int64},
    )


def _table(frame: pl.DataFrame, value: str, label: str, n: str) -> SourceTable:
    frame = frame.sort(value, label)
    sizes = frame.group_by(value, maintain_order=True).len("size")
    starts = np.concatenate([[0], np.cumsum(sizes["size"].to_numpy())]).astype(np.int64)
    return SourceTable(
        tuple(sizes[value]), starts, frame[label].to_numpy().astype(np.int32), frame[n].to_numpy().astype(np.int32)
    )
