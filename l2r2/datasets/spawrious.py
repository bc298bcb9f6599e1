"""Spawrious O2O-easy: four breeds of dogs, each before one scene in train and before another in test."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from l2r2.datasets.copies import keep_apart, with_digests
from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.errors import DatasetError

Variant = Literal["97", "100"]

HOME = {"bulldog": "desert", "corgi": "snow", "dachshund": "jungle", "labrador": "dirt"}
"""Class → its scene in train."""

AWAY = {"bulldog": "dirt", "corgi": "jungle", "dachshund": "snow", "labrador": "desert"}
"""Class → its scene in test."""

FILLER = "beach"
"""The scene of the training photographs that are not before the home scene."""

PER_CELL = 3168
"""Photographs of a class in one scene of one environment."""

AT_HOME = {"97": {"0": 3072, "1": 2756}, "100": {"0": PER_CELL}}
"""Variant → environment → how many of `PER_CELL` are before the home scene, 97, 87 and 100 %; the rest before
`FILLER`."""

VAL_SHARE = 0.1
"""Of each class's train photographs. Source: the paper, appendix A."""


def from_spawrious(root: Path, out: Path, *, variant: Variant, seed: int = 0, per_cell: int = PER_CELL) -> Dataset:
    """Spawrious O2O-easy: `root/spawrious224/{0,1}/<scene>/<class>/*.png`, or that from `root` itself.

    Columns environment ("0" or "1", the folder) and location (the scene) are notes, not metadata. Of a folder the
    first names in alphabetical order are taken for train; all are for test, from both environments. val is held out of
    train. A train photograph that is in test too is left out; `Card.notes` counts them.

    Args:
        variant: 97: as published, both environments, 97 and 87 % before the home scene. 100: environment 0 alone,
            all before the home scene.
        per_cell: Photographs of a class in one environment; the cuts scale with it.
    Raises:
        DatasetError: another layout, a folder with too few photographs, or a rule of `check`.
    Source: the paper, appendix A; Lynch et al. 2023, arXiv:2303.05470 (Spawrious).
    """
    if variant not in AT_HOME:
        raise DatasetError(f"variant is {variant!r}; expected one of {', '.join(AT_HOME)}")
    if per_cell < 1:
        raise DatasetError(f"per_cell is {per_cell}; expected at least 1")
    base = root / "spawrious224" if (root / "spawrious224").is_dir() else root
    tables = []
    for environment, count in AT_HOME[variant].items():
        at_home = count * per_cell // PER_CELL
        for label, scene in HOME.items():
            tables.append(_cell(base, environment, scene, label, "train", at_home).head(at_home))
            if at_home < per_cell:
                filling = per_cell - at_home
                tables.append(_cell(base, environment, FILLER, label, "train", filling).head(filling))
    for environment in ("0", "1"):
        tables += [_cell(base, environment, scene, label, "test", per_cell) for label, scene in AWAY.items()]
    table = with_digests(base, pl.concat(tables))
    table, left_out = keep_apart(table.with_columns(group=pl.col("digest")), VAL_SHARE, seed)
    notes = {
        "variant": variant,
        "per_cell": per_cell,
        "seed": seed,
        "val_share": VAL_SHARE,
        "left_out_of_train": left_out,
    }
    return make_dataset(out, Card(name=f"spawrious-{variant}", root=base.resolve(), notes=notes), table)


def _cell(base: Path, environment: str, scene: str, label: str, split: str, expected: int) -> pl.DataFrame:
    """All photographs of one class in one scene of one environment, sorted by name."""
    folder = base / environment / scene / label
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; expected {base}/{{0,1}}/<scene>/<class>/*.png of Spawrious")
    files = sorted(folder.glob("*.png"))
    if len(files) < expected:
        raise DatasetError(f"{folder} has {len(files)} photographs; expected at least {expected}, get it again")
    paths = [p.relative_to(base).as_posix() for p in files]
    return pl.DataFrame({"path": paths}, schema={"path": pl.String}).with_columns(
        label=pl.lit(label), split=pl.lit(split), environment=pl.lit(environment), location=pl.lit(scene)
    )
