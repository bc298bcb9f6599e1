"""A user's own photographs: class folders, or a table."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from l2r2.datasets.dataset import REQUIRED, Card, Dataset, make_dataset
from l2r2.datasets.split import split_by_group
from l2r2.errors import DatasetError
from l2r2.files import sha256
from l2r2.images import SUFFIXES

TRUTH = ("box_x0", "box_y0", "box_x1", "box_y1", "mask")


def from_folder(source: Path, out: Path, *, seed: int = 0, allow_duplicates: bool = False) -> Dataset:
    """Class folders: `source/<class>/*.jpg`, or `source/<split>/<class>/*.jpg` where there is a train folder.

    Without splits, 70 / 15 / 15 % of each class become train, val and test, by seed; with train alone, none are made
    up: val must be there.

    Raises:
        DatasetError: no such folder, no photographs, or a rule of `check` is broken.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is no folder; expected one folder of photographs a class")
    ready = (source / "train").is_dir()
    pattern = "*/*/*" if ready else "*/*"
    files = sorted(p for p in source.glob(pattern) if p.suffix.lower() in SUFFIXES)
    if not files:
        raise DatasetError(f"no photographs under {source}; expected {source}/{'train/' if ready else ''}<class>/*.jpg")
    digests = [sha256(p) for p in files]  # as groups, so that copies of one photograph stay together
    table = pl.DataFrame(
        {
            "path": [p.relative_to(source).as_posix() for p in files],
            "label": [p.parent.name for p in files],
            "group": digests,
            "digest": digests,
        }
    )
    if ready:
        table = table.with_columns(split=pl.Series([p.parent.parent.name for p in files]))
    else:
        table = split_by_group(table, seed)
    card = Card(name=source.name, root=source.resolve(), notes={"seed": seed})
    return make_dataset(out, card, table, allow_duplicates=allow_duplicates)


def from_table(file: Path, out: Path, *, seed: int = 0, allow_duplicates: bool = False) -> Dataset:
    """CSV or Parquet with path and label; split, group and any metadata columns are optional.

    Paths are relative to the file's folder. Ground truth columns are kept as such, all others are metadata.

    Raises:
        DatasetError: unreadable, a column is missing, or a rule of `check` is broken.
    """
    try:
        parquet = file.suffix.lower() == ".parquet"
        table = pl.read_parquet(file) if parquet else pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{file} cannot be read: {str(error).splitlines()[0]}; expected CSV or Parquet") from None
    for column in ("path", "label"):
        if column not in table.columns:
            raise DatasetError(f"{file} lacks column {column!r}; it has {', '.join(table.columns)}")
    table = table.drop("digest", strict=False)
    metadata = tuple(c for c in table.columns if c not in {*REQUIRED, *TRUTH})
    group = pl.col("group").cast(pl.String) if "group" in table.columns else pl.lit(None, pl.String)
    table = table.with_columns(group=group.fill_null(pl.col("path")))
    if "split" not in table.columns:
        if table["label"].null_count():
            raise DatasetError(f"{file}: {table['label'].null_count()} rows have no label and there is no split column")
        table = split_by_group(table, seed)
    card = Card(name=file.stem, root=file.parent.resolve(), metadata=metadata, notes={"seed": seed})
    return make_dataset(out, card, table, allow_duplicates=allow_duplicates)
