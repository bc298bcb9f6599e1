"""The numbers that the paper prints, cell by cell, and which recipe and data set make each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

from l2r2.errors import InputError

CELLS = Path(__file__).with_name("cells.csv")

SCHEMA = {
    "table": pl.Int64,
    "row": pl.String,
    "column": pl.String,
    "recipe": pl.String,
    "dataset": pl.String,
    "system": pl.String,
    "split": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "std": pl.Float64,
    "note": pl.String,
}
"""Columns of `cells.csv`: row and column as the paper labels them; value and std in %, as the paper prints them. Split
"mean" is the mean of the cells to its left; it has no recipe, data set or metric. A cell without a value is a control
of ours, which the paper does not print. The note says where the paper contradicts itself."""

MEAN = "mean"

TITLES = {
    1: "Recognition accuracy of FULL, FG, BG and their fusions",
    2: "Spawrious: domain generalization methods, ResNet50",
    3: "Fusions against ensembles of one view",
    4: "FungiTastic: metadata priors (macro accuracy)",
    5: "Zero-shot recognition: SigLIP2, BioCLIP on FungiTastic (macro accuracy)",
    6: "Zero-shot recognition by four models (macro accuracy)",
    7: "Hard ImageNet: ground-truth masks, ground-truth labels, neither",
    8: "Hard ImageNet without ground truth: OWLv2 against Grounding DINO",
    9: "FungiTastic, every system",
    10: "Hard ImageNet, every system, oracle prompts",
    11: "Hard ImageNet, every system, ground-truth masks",
    12: "Stanford Dogs, every system",
    13: "ImageNet-1K, every system, oracle prompts",
    14: "Spawrious, every system, ConvNeXt V2-B",
    15: "Spawrious, two ResNet50, 97 % correlation",
}
"""Table → what it shows, in few words."""


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """One experiment that a table or figure is made from: a recipe on a data set (its card's name)."""

    recipe: str
    dataset: str

    def __str__(self) -> str:
        return f"l2r2 train {self.recipe} --data …; data set {self.dataset}"


def paper_table(number: int) -> pl.DataFrame:
    """The cells of one table, in the paper's order; columns as `SCHEMA`.

    Raises:
        InputError: the paper has no such table.
    """
    if number not in TITLES:
        raise InputError(f"the paper has no table {number}; expected 1 to {max(TITLES)}")
    return _cells().filter(pl.col("table") == number)


def table_needs(number: int) -> list[Need]:
    """Every experiment that a table is made from, in the order in which the table comes to them.

    Raises:
        InputError: as `paper_table`.
    """
    pairs = paper_table(number).select("recipe", "dataset").drop_nulls().unique(maintain_order=True)
    return [Need(*pair) for pair in pairs.iter_rows()]


@cache
def _cells() -> pl.DataFrame:
    return pl.read_csv(CELLS, schema=SCHEMA)
