"""Stanford Dogs: 120 breeds, with boxes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl

from l2r2.datasets.copies import keep_apart, with_digests
from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.errors import DatasetError
from l2r2.localization.truth import BOX

VAL_SHARE = 0.12
"""Of each class's train photographs. Source: the paper, appendix A, gives 10 to 15 %."""

_LISTED = re.compile(r"(?P<folder>n\d{8}-(?P<breed>[^/]+))/[^/]+")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def from_stanford_dogs(root: Path, out: Path, *, seed: int = 0) -> Dataset:
    """Stanford Dogs: `root/{train,test}_list.mat`, `root/Images/<wnid-breed>/*.jpg`, `root/Annotation/<wnid-breed>/*`.

    The published lists say what is train and what test; val is held out of train. Labels are the breeds as the folders
    name them ("golden_retriever"); prompts say them with blanks. The box is the one around all dogs of a photograph,
    as published. A train photograph that is in test too is left out; `Card.notes` counts them.

    Raises:
        DatasetError: another layout, photographs or annotations missing, a list or annotation that cannot be read, or
            a rule of `check`.
    Source: the paper, section 4.1 and appendix A; Khosla et al. 2011 (Stanford Dogs).
    """
    for folder in ("Images", "Annotation"):
        if not (root / folder).is_dir():
            raise DatasetError(
                f"{root / folder} is no folder; expected {root}/Images/<wnid-breed>/*.jpg, "
                f"{root}/Annotation/<wnid-breed>/* and {root}/{{train,test}}_list.mat"
            )
    table = pl.concat([_listed(root / f"{split}_list.mat", split) for split in ("train", "test")])
    _check_lists(root, table)
    table = with_digests(root, table.with_columns(path=pl.format("Images/{}", "entry")))
    files = [(root / "Annotation" / entry).with_suffix("") for entry in table["entry"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} of {len(files)} annotations are missing, first {missing[0]}")
    boxes = pl.DataFrame([_box(file) for file in files], schema=dict.fromkeys(BOX, pl.Float64), orient="row")
    table = pl.concat([table.drop("entry", "number"), boxes], how="horizontal").with_columns(group=pl.col("digest"))
    table, left_out = keep_apart(table, VAL_SHARE, seed)
    notes = {"seed": seed, "val_share": VAL_SHARE, "left_out_of_train": left_out}
    return make_dataset(out, Card(name="stanford-dogs", root=root.resolve(), notes=notes), table)


def _listed(file: Path, split: str) -> pl.DataFrame:
    """entry (below Images), number (the class, from 1), label and split of one list."""
    from scipy.io import loadmat

    try:
        contents = loadmat(file, variable_names=["file_list", "labels"], squeeze_me=True)
        entries = [str(entry) for entry in np.ravel(contents["file_list"])]
        numbers = [int(number) for number in np.ravel(contents["labels"])]
    except Exception as error:  # a damaged file raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{file} cannot be read: {reason}; expected a MAT file with file_list and labels") from error
    if len(entries) != len(numbers):
        raise DatasetError(f"{file} has {len(entries)} files and {len(numbers)} labels; expected as many")
    found = [_LISTED.fullmatch(entry) for entry in entries]
    strange = [entry for entry, match in zip(entries, found, strict=True) if match is None]
    if strange:
        raise DatasetError(f"{file} lists {strange[0]!r}; expected <wnid>-<breed>/<name>.jpg")
    columns = {"entry": entries, "number": numbers, "label": [match["breed"] for match in found if match]}
    return pl.DataFrame(columns, schema={"entry": pl.String, "number": pl.Int64, "label": pl.String}).with_columns(
        split=pl.lit(split)
    )


def _check_lists(root: Path, table: pl.DataFrame) -> None:
    twice = table.filter(pl.col("entry").is_duplicated())
    if len(twice):
        raise DatasetError(f"the lists of {root} have {twice['entry'][0]} twice; expected each photograph once")
    folder = pl.col("entry").str.split("/").list.first()
    classes = table.select(folder.alias("folder"), "label", "number").unique().sort("folder", "number")
    for column in ("folder", "number", "label"):
        several = classes.filter(pl.col(column).is_duplicated())
        if len(several):
            one, other = several.filter(pl.col(column) == several[column][0]).head(2).iter_rows(named=True)
            raise DatasetError(
                f"the lists of {root} have {one['folder']} as {one['number']} and {other['folder']} as "
                f"{other['number']}; expected one number a breed"
            )


def _box(file: Path) -> tuple[float, ...]:
    """Left, top, right, bottom in pixels around all objects of a VOC annotation."""
    try:
        objects = ElementTree.parse(file).findall("object/bndbox")  # noqa: S314  expat bounds what entities grow to
        corners = np.array([[float(box.findtext(name, "")) for name in _CORNERS] for box in objects])
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise DatasetError(
            f"{file} cannot be read: {error}; expected VOC XML with xmin, ymin, xmax, ymax of each object"
        ) from None
    if not len(corners):
        raise DatasetError(f"{file} has no object with a bndbox; expected one at least")
    box = (*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())
    if not np.isfinite(corners).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise DatasetError(f"{file} has the box {box}; expected xmin < xmax and ymin < ymax")
    return box
