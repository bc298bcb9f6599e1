"""The one table that every data set becomes, and the rules it must keep.

Columns of `dataset.parquet`:

    path      relative to the card's root, or absolute
    label     class name; null where it is not known (never in train or val)
    split     "train", "val", or the name of a test set ("test", "iid", "reversed", …)
    group     what must stay in one split: an observation, an animal, a cut-out
    digest    sha256 of the file's bytes
    …         any other column is metadata or a note; `Card.metadata` says which are metadata
    box_x0 …  optional ground truth: box_x0, box_y0, box_x1, box_y1 in pixels, and mask (path of a PNG)

Groups and photographs may be shared by test sets (the same objects before other scenes), never between train, val and
the test sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ValidationError

from l2r2.config import Settings
from l2r2.errors import DatasetError
from l2r2.files import sha256, write_table, write_text
from l2r2.metrics import Labels
from l2r2.types import Metadata

REQUIRED = ("path", "label", "split", "group", "digest")
FITTING = ("train", "val")

TABLE, CARD = "dataset.parquet", "dataset.json"


class Card(Settings):
    """What the table does not say."""

    name: str
    root: Path | None = None
    """Where relative paths start; None: the folder of the table."""
    metadata: tuple[str, ...] = ()
    """Columns that are metadata sources."""
    simulated_metadata: bool = False
    """Drawn from a table rather than observed."""
    classes: tuple[str, ...] | None = None
    """Of a data set that has test sets only (nothing is trained or chosen on it); None: the labels of train."""
    words: dict[str, str] = {}
    """Label → how to say it in a prompt; a label that is not there is said as it is, `_` as a blank."""
    hazardous: tuple[str, ...] = ()
    """Labels whose confusion can do harm (poisonous species)."""
    notes: dict[str, str | int | float] = {}


@dataclass(frozen=True)
class Dataset:
    """A checked table of photographs.

    Attributes:
        folder: Where the table lies.
        table: See the module's docstring.
        class_names: Sorted labels of the training split, or the card's; the order of every logit column.
    """

    folder: Path
    card: Card
    table: pl.DataFrame

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        if self.card.classes is not None:
            return self.card.classes
        return tuple(sorted(self.table.filter(pl.col("split") == "train")["label"].unique().drop_nulls()))

    def words(self, label: str) -> str:
        """A label as a prompt says it."""
        return self.card.words.get(label, label.replace("_", " "))

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any photograph, label, split, group or metadata value."""
        columns = ["digest", "label", "split", "group", *self.card.metadata]
        text = self.table.select(columns).sort("split", *columns).write_csv()
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def test_sets(self) -> tuple[str, ...]:
        """Splits other than train and val, sorted."""
        return tuple(sorted(set(self.table["split"]) - set(FITTING)))

    def split(self, name: str) -> Dataset:
        """The rows of one split, in table order.

        Raises:
            DatasetError: there is no such split.
        """
        rows = self.table.filter(pl.col("split") == name)
        if rows.is_empty():
            known = ", ".join(sorted(set(self.table["split"])))
            raise DatasetError(f"{self.folder} has no split {name!r}; it has {known}")
        part = Dataset(self.folder, self.card, rows)
        part.__dict__["class_names"] = self.class_names
        return part

    def __len__(self) -> int:
        return len(self.table)

    def paths(self) -> list[Path]:
        """One a row."""
        root = self.card.root or self.folder
        return [root / path for path in self.table["path"]]

    def labels(self) -> Labels:
        """Index into `class_names`, one a row.

        Raises:
            DatasetError: a label is missing, or is no class of the training split.
        """
        places = {name: k for k, name in enumerate(self.class_names)}
        unknown = [label for label in self.table["label"].unique() if label not in places]
        if unknown:
            raise DatasetError(
                f"{self.folder}: label {unknown[0]!r} is no class of the training split "
                f"({', '.join(self.class_names[:5])}…); give every photograph to be scored a known label"
            )
        return np.array([places[label] for label in self.table["label"]], dtype=np.int64)

    def groups(self) -> np.ndarray:
        """One name a row."""
        return self.table["group"].to_numpy()

    def metadata(self, sources: Sequence[str] | None = None) -> list[Metadata]:
        """What is known of each row; nulls are left out. `sources` narrows the card's metadata columns."""
        columns = [c for c in (self.card.metadata if sources is None else sources) if c in self.table.columns]
        rows = self.table.select(pl.col(columns).cast(pl.String)).to_dicts() if columns else [{}] * len(self)
        return [{source: value for source, value in row.items() if value is not None} for row in rows]

    def save(self) -> None:
        """Write table and card, each whole or not at all; the card last, so that a table without one is unfinished."""
        write_table(self.folder / TABLE, self.table)
        write_text(self.folder / CARD, self.card.model_dump_json(indent=2) + "\n")


def load_dataset(folder: Path) -> Dataset:
    """Read what `save` wrote.

    Raises:
        DatasetError: the folder holds no data set, or one that cannot be read.
    """
    for name in (CARD, TABLE):
        if not (folder / name).exists():
            raise DatasetError(f"{folder} is no data set: {name} is missing; make one with: l2r2 data --help")
    try:
        card = Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
        table = pl.read_parquet(folder / TABLE)
    except (OSError, UnicodeDecodeError, ValidationError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{folder} cannot be read: {str(error).splitlines()[0]}; make it again") from None
    absent = [column for column in (*REQUIRED, *card.metadata) if column not in table.columns]
    if absent:
        raise DatasetError(f"{folder / TABLE} lacks column {absent[0]!r}; expected {', '.join(REQUIRED)}")
    return Dataset(folder, card, table)


def make_dataset(
    folder: Path,
    card: Card,
    table: pl.DataFrame,
    *,
    allow_duplicates: bool = False,
    allow_absent_in_val: bool = False,
) -> Dataset:
    """Complete a table (digests, groups), check every rule, write it.

    Args:
        table: path, label, split; group is each photograph's own where the column is missing or null.
        allow_duplicates: Accept the same photograph in train, val or test at once.
        allow_absent_in_val: Accept classes of train that val lacks, as published splits by year have them.
    Raises:
        DatasetError: a rule is broken; the message names the row, class or group.
    """
    absent = [column for column in ("path", "label", "split", *card.metadata) if column not in table.columns]
    if absent:
        raise DatasetError(f"the table lacks column {absent[0]!r}; it has {', '.join(table.columns)}")
    if table.is_empty():
        raise DatasetError("the table has no photographs; nothing to make a data set of")
    root = card.root or folder
    values = pl.col(card.metadata).cast(pl.String).str.strip_chars().replace("", None)  # blank is not known
    table = table.with_columns(pl.col("path", "label", "split").cast(pl.String), values)
    missing = [path for path in table["path"] if path is None or not (root / path).is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} of {len(table)} photographs are missing, first {root / str(missing[0])}")
    if "month" in card.metadata:
        table = _plain_months(table)
    if "digest" not in table.columns:
        table = table.with_columns(digest=pl.Series([sha256(root / path) for path in table["path"]]))
    group = pl.col("group").cast(pl.String) if "group" in table.columns else pl.lit(None, pl.String)
    table = table.with_columns(group=group.fill_null(pl.col("digest")))
    if card.classes is None:
        check(table, allow_duplicates=allow_duplicates, allow_absent_in_val=allow_absent_in_val)
    else:
        check_test_only(table, card.classes)
    dataset = Dataset(folder, card, table)
    dataset.save()
    return dataset


def check(table: pl.DataFrame, *, allow_duplicates: bool = False, allow_absent_in_val: bool = False) -> None:
    """Refuse a table that would give figures nobody should believe.

    Raises:
        DatasetError: no train or val split; a label missing there; fewer than two classes; a class of val or a test set
            without a training photograph, or (unless allowed) one of train without a photograph in val; a group, or
            (unless allowed) a photograph, in more than one of train, val and tests.
    """
    splits = set(table["split"].drop_nulls())
    for name in FITTING:
        if name not in splits:
            raise DatasetError(f"there is no split {name!r}; got {', '.join(sorted(splits)) or 'none'}")
    if table["split"].null_count():
        raise DatasetError(
            f"{table['split'].null_count()} rows have no split; expected train, val or a test set's name"
        )
    fitting = table.filter(pl.col("split").is_in(FITTING))
    unlabelled = fitting.filter(pl.col("label").is_null())
    if len(unlabelled):
        raise DatasetError(
            f"{len(unlabelled)} photographs of train or val have no label, first {unlabelled['path'][0]}"
        )
    counts = _classes(table, "train")
    if len(counts) < 2:
        raise DatasetError(f"train has {len(counts)} class ({', '.join(counts)}); expected at least two to tell apart")
    for name in sorted(splits - {"train"}):
        strange = sorted(set(_classes(table, name)) - set(counts))
        if strange:
            raise DatasetError(f"class {strange[0]!r} is in {name!r} but has no photograph in train; move some there")
    absent = sorted(set(counts) - set(_classes(table, "val")))
    if absent and not allow_absent_in_val:
        raise DatasetError(
            f"class {absent[0]!r} has no photograph in 'val'; nothing can be chosen for it, move some there"
        )
    role = pl.when(pl.col("split").is_in(FITTING)).then("split").otherwise(pl.lit("a test set")).alias("role")
    roles = table.select("group", "digest", "path", role)
    leak = _shared(roles, "group")
    if leak:
        raise DatasetError(f"group {leak[0]!r} is in {leak[1]}; a group must stay in one of train, val and test")
    twin = None if allow_duplicates else _shared(roles, "digest")
    if twin:
        paths = roles.filter(pl.col("digest") == twin[0])["path"]
        raise DatasetError(
            f"{paths[0]} and {paths[1]} are the same photograph, in {twin[1]}; remove one or pass --allow"
        )


def check_test_only(table: pl.DataFrame, classes: Sequence[str]) -> None:
    """Refuse a table of test sets that has something to train on, or a class that the card does not name.

    Raises:
        DatasetError: which.
    """
    names = set(classes)
    if len(classes) < 2 or len(names) != len(classes):
        raise DatasetError(
            f"the card has {len(classes)} classes, {len(names)} distinct; expected two or more, once each"
        )
    if table["split"].null_count() or set(table["split"]) & set(FITTING):
        raise DatasetError("a data set with its own list of classes has test sets only; expected no train, no val")
    strange = sorted(set(table["label"].drop_nulls()) - names)
    if strange:
        raise DatasetError(f"label {strange[0]!r} is not in the card's list of {len(classes)} classes")


def _plain_months(table: pl.DataFrame) -> pl.DataFrame:
    """Months as "1" to "12", whatever they came as ("05", "5.0"); the form that a request's month has."""
    plain = table["month"].cast(pl.Float64, strict=False)
    wrong = table["month"].is_not_null() & ~(plain.is_in([float(m) for m in range(1, 13)])).fill_null(False)
    if wrong.any():
        raise DatasetError(f"month is {table['month'].filter(wrong)[0]!r}; expected 1 to 12 or nothing")
    return table.with_columns(month=plain.cast(pl.Int64).cast(pl.String))


def _classes(table: pl.DataFrame, split: str) -> Mapping[str, int]:
    labels = table.filter(pl.col("split") == split)["label"].drop_nulls()
    return dict(labels.value_counts(sort=True).iter_rows())


def _shared(roles: pl.DataFrame, column: str) -> tuple[str, str] | None:
    spread = roles.group_by(column).agg(pl.col("role").unique().sort()).filter(pl.col("role").list.len() > 1)
    if spread.is_empty():
        return None
    row = spread.sort(column).row(0)
    return str(row[0]), " and ".join(row[1])
