"""Photographs that a published set has twice: found by digest, kept out of train or together."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from l2r2.datasets.split import hold_out
from l2r2.errors import DatasetError
from l2r2.files import sha256

MAX_COPIED = 0.05
"""Share of the test photographs that train may hold copies of; they are left out of train. Of ImageNet's own 50,000,
797 are in train, each under another label (Kisel et al. 2024, arXiv:2412.00076); more is a mistake in the folders."""


def with_digests(root: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Add the column digest.

    Raises:
        DatasetError: photographs are missing; the message counts them and names the first.
    """
    missing = [path for path in table["path"] if path is None or not (root / path).is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} of {len(table)} photographs are missing, first {root / str(missing[0])}")
    return table.with_columns(digest=pl.Series([sha256(root / path) for path in table["path"]], dtype=pl.String))


def keep_apart(table: pl.DataFrame, val_share: float, seed: int) -> tuple[pl.DataFrame, int]:
    """Leave out of train what a test set has too, then hold val out of it; copies of a photograph stay together.

    A photograph that train has under several labels stays in train. Test sets are never changed, so that figures
    compare with published ones.

    Returns:
        The table, and how many rows were left out.
    Raises:
        DatasetError: more than `MAX_COPIED` of the test photographs are in train, or a class has one photograph there.
    """
    is_train = pl.col("split") == "train"
    tests = set(table.filter(~is_train)["digest"])
    copied = tests & set(table.filter(is_train)["digest"])
    if len(copied) > MAX_COPIED * len(tests):
        raise DatasetError(
            f"{len(copied)} of {len(tests)} test photographs are in train too; expected at most {MAX_COPIED:.0%}, "
            "the published folders have a few copies, look for a test folder that was copied into train"
        )
    apart = table.filter(~(is_train & pl.col("digest").is_in(list(copied))))
    several = is_train & (pl.col("label").n_unique().over("digest", "split") > 1)
    held = hold_out(apart.filter(~several), val_share, seed)
    return pl.concat([held, apart.filter(several)]), len(table) - len(apart)
