"""A table of the paper filled from tracked runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from l2r2.experiments.paper.cells import MEAN, TITLES, Need, paper_table, table_needs
from l2r2.experiments.report import RESULTS
from l2r2.experiments.results import SCHEMA
from l2r2.tracking import Store

KEY = ["recipe", "dataset", "system", "split", "metric"]


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """One table, ours beside the paper's.

    Attributes:
        cells: The paper's cells with ours (mean over seeds, %), ours_std (their sample standard deviation, points; null
            with one seed), seeds (how many), n (photographs) and difference (ours - paper, points). Null where there
            is nothing tracked.
        runs: Experiment → its newest finished run.
        missing: Experiments without a finished run.
    """

    number: int
    cells: pl.DataFrame
    runs: Mapping[Need, str]
    missing: Sequence[Need]

    @property
    def title(self) -> str:
        return TITLES[self.number]


def gather(store: Store, number: int) -> Filled:
    """Fill a table with what is tracked.

    Raises:
        InputError: the paper has no such table.
        ArtifactError: a run has no `tables/results.parquet`.
    """
    needs = table_needs(number)
    runs = tracked(store, needs)
    frames = [_ours(need, pl.read_parquet(store.download(run_id, RESULTS))) for need, run_id in runs.items()]
    found = pl.concat(frames) if frames else _ours(Need("", ""), pl.DataFrame(schema=SCHEMA))
    cells = paper_table(number).join(found, on=KEY, how="left", maintain_order="left")
    cells = _with_means(cells).with_columns(difference=pl.col("ours") - pl.col("value"))
    return Filled(number, cells, runs, [need for need in needs if need not in runs])


def tracked(store: Store, needs: Iterable[Need]) -> dict[Need, str]:
    """The newest finished run of each experiment that has one."""
    runs = {need: store.finished(need.recipe, {"kind": "experiment", "dataset": need.dataset}) for need in needs}
    return {need: run_id for need, run_id in runs.items() if run_id is not None}


def _ours(need: Need, results: pl.DataFrame) -> pl.DataFrame:
    return (
        results.group_by("system", "split", "metric")
        .agg(
            ours=100 * pl.col("value").mean(),
            ours_std=100 * pl.col("value").std(ddof=1),
            seeds=pl.col("seed").n_unique().cast(pl.Int64),
            n=pl.col("n").max(),
        )
        .with_columns(recipe=pl.lit(need.recipe), dataset=pl.lit(need.dataset))
    )


def _with_means(cells: pl.DataFrame) -> pl.DataFrame:
    """A cell of split "mean" becomes the mean of those to its left, once they are all there."""
    ours: list[float | None] = []
    left: list[float | None] = []
    row = None
    for cell in cells.iter_rows(named=True):
        if cell["row"] != row:
            row, left = cell["row"], []
        value: float | None = cell["ours"]
        if cell["split"] == MEAN:
            known = [number for number in left if number is not None]
            value = sum(known) / len(left) if left and len(known) == len(left) else None
        ours.append(value)
        left.append(value)
    return cells.with_columns(ours=pl.Series(ours, dtype=pl.Float64))
