"""ImageNet-1k, and its subset of clean labels."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import polars as pl

from l2r2.datasets.copies import keep_apart
from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.datasets.wordnet import class_words, imagenet_wnids
from l2r2.errors import DatasetError
from l2r2.files import sha256
from l2r2.images import SUFFIXES

CleanRule = Literal["agree", "single"]

CLEAN_COLUMNS = ("id", "original_label", "proposed_labels")


def from_imagenet(
    root: Path,
    out: Path,
    *,
    clean: Path | None = None,
    clean_rule: CleanRule = "agree",
    train: bool = True,
    val_share: float = 0.02,
    seed: int = 0,
) -> Dataset:
    """ImageNet-1k: `root/{train,val}/<wnid>/*.JPEG`; labels are wnids, words the first lemma.

    The official validation split is test set "test"; val is held out of train, whole photographs with their copies.
    A train photograph that is in a test set too is left out of train; `Card.notes` counts them. With `clean`, the
    photographs whose label is clean are listed again as test set "clean".

    Args:
        clean: `clean_validation.csv`: id (file name, with or without suffix), original_label and proposed_labels
            (ImageNet indices; several are "689, 601", none is blank). Its column validation, which of the works that
            it joins looked by hand, is not used. Rows of classes that are not under `root` are passed over.
        clean_rule: agree: the one proposed label is the original; of the 36,415 published rows, 31,787. single: one
            label is proposed, and it is the label here even where it is not the original; 33,210. The paper does not
            say which it takes.
        train: False: test sets only; the classes are then those of val.
        val_share: Of each class's train photographs, (0, 1).
    Raises:
        DatasetError: another layout, classes or photographs missing, a CSV that cannot be used, or a rule of `check`.
    Source: the paper, section 4.1 and appendix A.
    """
    if not 0.0 < val_share < 1.0:
        raise DatasetError(f"val_share is {val_share}; expected a share above 0 and below 1")
    table = class_folders(root, "val", "test")
    if train:
        fitting = class_folders(root, "train", "train")
        _same_classes(root, set(fitting["label"]), set(table["label"]))
        table = pl.concat([fitting, table])
    notes: dict[str, str | int | float] = {"seed": seed}
    if clean is not None:
        listed = _clean(clean, clean_rule, root, table)
        table = pl.concat([table, listed])
        notes |= {"clean_rule": clean_rule, "clean": len(listed)}
    if train:
        table, left_out = keep_apart(table, val_share, seed)
        notes |= {"val_share": val_share, "left_out_of_train": left_out}
    labels = sorted(set(table["label"]))
    card = Card(
        name="imagenet",
        root=root.resolve(),
        classes=None if train else tuple(labels),
        words=class_words(labels),
        notes=notes,
    )
    return make_dataset(out, card, table)


def class_folders(root: Path, folder: str, split: str, only: Collection[str] | None = None) -> pl.DataFrame:
    """One split of an ImageNet layout: path, label, split, group and digest, sorted by path; groups are digests.

    Args:
        folder: train or val.
        only: The wnids to take; None: all that there are.
    Raises:
        DatasetError: no such folder, a folder that is no class, a class without photographs.
    """
    place = root / folder
    expected = f"{root}/{{train,val}}/<wnid>/*.JPEG"
    if not place.is_dir():
        raise DatasetError(f"{place} is no folder; expected {expected}")
    names = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DatasetError(f"{place} has no class folders; expected {expected}, sort its photographs into them first")
    strange = sorted(set(names) - set(imagenet_wnids()))
    if strange and only is None:
        raise DatasetError(f"{place / strange[0]} is no class of ImageNet-1k; expected {expected}")
    wanted = names if only is None else sorted(only)
    files = [p for name in wanted for p in sorted((place / name).glob("*")) if p.suffix.lower() in SUFFIXES]
    labels = [p.parent.name for p in files]
    empty = sorted(set(wanted) - set(labels))
    if empty:
        raise DatasetError(
            f"{len(empty)} of {len(wanted)} classes have no photographs under {place}, first {empty[0]}; "
            f"expected {expected}"
        )
    digests = [sha256(p) for p in files]
    paths = [p.relative_to(root).as_posix() for p in files]
    return pl.DataFrame({"path": paths, "label": labels, "group": digests, "digest": digests}).with_columns(
        split=pl.lit(split)
    )


def _same_classes(root: Path, train: set[str], val: set[str]) -> None:
    for here, there, have, lack in (("train", "val", train, val), ("val", "train", val, train)):
        absent = sorted(have - lack)
        if absent:
            raise DatasetError(
                f"{len(absent)} of {len(have)} classes of {root / here} are not in {root / there}, first {absent[0]}; "
                "expected the same classes in both"
            )


def _clean(file: Path, rule: CleanRule, root: Path, table: pl.DataFrame) -> pl.DataFrame:
    """The photographs of the test set whose label is clean, once more, as split "clean"."""
    test = table.filter(pl.col("split") == "test").with_columns(
        stem=pl.col("path").str.extract(r"([^/]+)\.[^./]+$"),
    )
    rows = _read_clean(file).filter(pl.col("original").is_in(list(set(test["label"]))))  # a subset of ImageNet may do
    both = rows.join(test, on="stem", how="inner", maintain_order="right")
    if both.is_empty():
        raise DatasetError(
            f"no row of {file} names a photograph under {root / 'val'}; expected ids as {test['stem'][0]}"
        )
    if len(both) < len(rows):
        lost = rows.join(test, on="stem", how="anti", maintain_order="left")["stem"]
        raise DatasetError(
            f"{len(lost)} of {len(rows)} photographs of {file} are missing under {root / 'val'}, first {lost[0]}"
        )
    strange = both.filter(pl.col("original") != pl.col("label"))
    if len(strange):
        row = strange.row(0, named=True)
        raise DatasetError(
            f"{file} has {row['stem']} as {row['original']}, it lies in {row['label']}; "
            "expected indices that count the sorted wnids"
        )
    single = pl.col("proposed").list.len() == 1
    proposed = pl.col("proposed").list.first()
    taken = proposed == pl.col("original") if rule == "agree" else proposed.is_in(list(set(test["label"])))
    kept = both.filter(single & taken).with_columns(label=proposed, split=pl.lit("clean"))
    if kept.is_empty():
        raise DatasetError(f"none of {len(both)} rows of {file} has a clean label by rule {rule!r}; try the other rule")
    return kept.select(table.columns)


def _read_clean(file: Path) -> pl.DataFrame:
    """stem, original (wnid) and proposed (distinct wnids)."""
    try:
        table = pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{file} cannot be read: {reason}; expected clean_validation.csv") from None
    absent = [column for column in CLEAN_COLUMNS if column not in table.columns]
    if absent:
        raise DatasetError(f"{file} lacks column {absent[0]!r}; it has {', '.join(table.columns)}")
    stem = pl.col("id").fill_null("").str.strip_chars().str.replace(r"(?i)\.jpe?g$", "")
    rows = table.select(
        "original_label",
        "proposed_labels",
        stem=stem,
        original=_wnids("original_label"),
        proposed=_wnids("proposed_labels"),
    )
    wrong = pl.col("original").list.len() != 1
    for column, bad in (
        ("original_label", wrong | pl.col("original").list.contains(None)),
        ("proposed_labels", pl.col("proposed").list.contains(None)),
    ):
        found = rows.filter(bad)
        if len(found):
            raise DatasetError(
                f"{file}: {column} of {found['stem'][0]} is {found[column][0]!r}; expected ImageNet indices, 0 to 999"
            )
    twice = rows.filter(pl.col("stem").is_duplicated())
    if len(twice):
        raise DatasetError(
            f"{file} has {len(twice)} rows that share an id, first {twice['stem'][0]}; expected each once"
        )
    return rows.select("stem", "proposed", original=pl.col("original").list.first())


def _wnids(column: str) -> pl.Expr:
    """The distinct wnids of a cell such as "689, 601"; null for what is no ImageNet index."""
    places = {str(index): wnid for index, wnid in enumerate(imagenet_wnids())}
    parts = pl.col(column).fill_null("").str.extract_all(r"[^,\s]+")
    return parts.list.eval(pl.element().replace_strict(places, default=None, return_dtype=pl.String)).list.unique()
