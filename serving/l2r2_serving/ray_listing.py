"""Which photographs a data set has, and what is known of each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import polars as pl

from l2r2.errors import DatasetError
from l2r2.images import SUFFIXES

OWN = ("habitat", "substrate", "month")
"""Columns that are metadata whatever the bundle knows."""

_log = logging.getLogger(__name__)


def list_photographs(source: Path, sources: Iterable[str]) -> pl.DataFrame:
    """The photographs in their order: a folder's by path, a table's as they stand.

    Args:
        source: A folder, searched as a whole; or a table, .parquet or .csv, with a column `path` (relative ones from
            where the table is) and metadata, one source a column.
        sources: Metadata that the bundle knows, beside `OWN`; other columns are not used.
    Returns:
        `path`, absolute, and a column of text a metadata source, null where nothing is known.
    Raises:
        DatasetError: no photograph there, one twice, or no such table.
    """
    listing = _walk(source) if source.is_dir() else _read_table(source, {*OWN, *sources} - {"path"})
    if listing.is_empty():
        raise DatasetError(f"{source} has no photograph; expected files of {', '.join(sorted(SUFFIXES))}")
    twice = listing.filter(pl.col("path").is_duplicated())
    if not twice.is_empty():
        raise DatasetError(f"{source} has {twice['path'][0]} twice; expected each photograph once")
    return listing


def _walk(folder: Path) -> pl.DataFrame:
    # Strings: a million Path objects take their time.
    found = [
        os.path.join(place, name)  # noqa: PTH118
        for place, _, names in os.walk(folder.resolve(), onerror=_refuse)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
    ]
    try:
        return pl.DataFrame({"path": sorted(found)}, schema={"path": pl.String})
    except UnicodeEncodeError as error:
        raise DatasetError(f"{folder} has a file name that is no UTF-8: {error.object!a}; rename it") from error


def _refuse(error: OSError) -> NoReturn:
    raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error


def _read_table(source: Path, known: set[str]) -> pl.DataFrame:
    try:
        match source.suffix.lower():
            case ".parquet":
                table = pl.read_parquet(source)
            case ".csv":
                table = pl.read_csv(source, infer_schema_length=None, schema_overrides={"path": pl.String})
            case _:
                raise DatasetError(f"{source} is neither a folder nor a table; expected .parquet or .csv")
        texts = [_as_text(table[name]) for name in table.columns if name in known]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{source} cannot be read: {str(error).splitlines()[0]}") from error
    if table.schema.get("path") != pl.String:
        raise DatasetError(f"{source} has columns {', '.join(table.columns)}; expected `path`, of text")
    if none := table["path"].fill_null("").eq("").sum():
        raise DatasetError(f"{source} has {none} rows without a path; expected one in each")
    unused = [name for name in table.columns if name not in known | {"path"}]
    if unused:
        _log.info("columns that the bundle does not know are not used: %s", ", ".join(unused))
    root = str(source.resolve().parent)
    paths = [os.path.normpath(os.path.join(root, path)) for path in table["path"]]  # noqa: PTH118
    return pl.DataFrame([pl.Series("path", paths, pl.String), *texts])


def _as_text(column: pl.Series) -> pl.Series:
    """Months that a gap in the column has made 9.0 are 9 again."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
        known = column.drop_nulls()
        if known.is_finite().all() and known.eq(known.round()).all():
            column = column.cast(pl.Int64)
    return column.cast(pl.String)
