"""Splits where there are none: whole groups, every class in each, by seed."""

from __future__ import annotations

import numpy as np
import polars as pl

from l2r2.errors import DatasetError

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def assign(groups: list[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Give each group a split.

    Args:
        groups: Distinct names; their order does not matter.
        shares: Split → share, summing to 1; every split gets at least one group.
    Raises:
        DatasetError: fewer groups than splits.
    """
    if len(groups) < len(shares):
        raise DatasetError(
            f"{len(groups)} groups for {len(shares)} splits ({', '.join(shares)}); expected at least as many"
        )
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    spare = len(names) - len(shares)
    ends = np.round(np.cumsum(list(shares.values())) * spare).astype(int) + np.arange(1, len(shares) + 1)
    place = np.searchsorted(ends, np.arange(len(names)), side="right")
    splits = list(shares)
    return {names[i]: splits[p] for i, p in zip(order, place, strict=True)}


def split_by_group(table: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Add a split column to label and group, class by class.

    Raises:
        DatasetError: a class has too few groups to be in every split, or a group has two labels.
    """
    mixed = table.group_by("group").agg(pl.col("label").n_unique().alias("labels")).filter(pl.col("labels") > 1)
    if len(mixed):
        raise DatasetError(
            f"group {mixed['group'].sort()[0]!r} has several labels; give the splits yourself in a table"
        )
    places: dict[str, str] = {}
    for (label,), part in table.partition_by("label", as_dict=True).items():
        try:
            places |= assign(part["group"].unique().to_list(), SHARES, seed)
        except DatasetError as error:
            raise DatasetError(f"class {label!r}: {error}") from None
    return table.with_columns(split=pl.col("group").replace_strict(places))


def hold_out(table: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Move about `share` of each class's train groups, at least one, to val; for data sets that come without val.

    Args:
        table: label, group and split; other splits than train are left alone.
        share: Of the groups, (0, 1); the paper takes 10 to 15 %.
    Raises:
        DatasetError: a class has a single group in train, or a group has two labels.
    """
    train = table.filter(pl.col("split") == "train")
    mixed = train.group_by("group").agg(pl.col("label").n_unique().alias("labels")).filter(pl.col("labels") > 1)
    if len(mixed):
        raise DatasetError(f"group {mixed['group'].sort()[0]!r} has several labels in train; expected one")
    moved: set[str] = set()
    for (label,), part in train.partition_by("label", as_dict=True).items():
        try:
            places = assign(part["group"].unique().to_list(), {"train": 1.0 - share, "val": share}, seed)
        except DatasetError as error:
            raise DatasetError(f"class {label!r}: {error}") from None
        moved |= {group for group, split in places.items() if split == "val"}
    is_moved = (pl.col("split") == "train") & pl.col("group").is_in(moved)
    return table.with_columns(split=pl.when(is_moved).then(pl.lit("val")).otherwise("split"))
