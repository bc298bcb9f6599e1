"""Oxford-IIIT Pet: 37 breeds of cats and dogs, with masks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from l2r2.datasets.copies import keep_apart, with_digests
from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.datasets.masks import fit_mask, keep_sources, save_mask
from l2r2.errors import DatasetError
from l2r2.files import whole_folder
from l2r2.localization.truth import BOX
from l2r2.types import Mask

VAL_SHARE = 0.12
"""Of each class's photographs of trainval; as `l2r2.datasets.stanford_dogs` has it."""

FOREGROUND, BACKGROUND, BORDER = 1, 2, 3
"""What a trimap's pixels say."""

_SPLITS = {"trainval": "train", "test": "test"}
_LINE = re.compile(r"(?P<name>(?P<breed>[^\s/]+)_\d+)\s+(?P<number>\d+)\s+\d+\s+\d+")


def from_oxford_pets(root: Path, out: Path, *, seed: int = 0) -> Dataset:
    """Oxford-IIIT Pet: `root/oxford-iiit-pet/{images,annotations}` as torchvision lays it out, or that from `root`.

    The lists `annotations/{trainval,test}.txt` are kept; val is held out of trainval. Labels are the breeds as the
    files name them ("american_bulldog"). Masks are the trimaps' foreground and border, for the border holds the
    outline of the animal itself; they are written to `out/masks`, boxes are around them. The published boxes
    (`annotations/xmls`) are of heads and are not used. A photograph of trainval that is in test too is left out;
    `Card.notes` counts them.

    Raises:
        DatasetError: another layout, photographs or trimaps missing, one that cannot be read, or a rule of `check`.
    Source: Parkhi et al. 2012 (Oxford-IIIT Pet).
    """
    base = root / "oxford-iiit-pet" if (root / "oxford-iiit-pet").is_dir() else root
    trimaps = base / "annotations" / "trimaps"
    for folder in (base / "images", trimaps):
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is no folder; expected {base}/images/*.jpg, {base}/annotations/{{trainval,test}}.txt and "
                f"{trimaps}/*.png"
            )
    table = pl.concat([_listed(base / "annotations" / f"{name}.txt", split) for name, split in _SPLITS.items()])
    _check_lists(base, table)
    table = with_digests(base, table.with_columns(path=pl.format("images/{}.jpg", "name")))
    missing = [name for name in table["name"] if not (trimaps / f"{name}.png").is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} of {len(table)} trimaps are missing, first {trimaps / missing[0]}.png")
    table, left_out = keep_apart(table.with_columns(group=pl.col("digest")), VAL_SHARE, seed)
    table = _with_masks(base, trimaps, out / "masks", table).drop("name", "number")
    notes = {"seed": seed, "val_share": VAL_SHARE, "left_out_of_train": left_out}
    return make_dataset(out, Card(name="oxford-pets", root=base.resolve(), notes=notes), table)


def _listed(file: Path, split: str) -> pl.DataFrame:
    """name (without suffix), number (the class, from 1), label and split of one list."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read: {error}; expected one photograph a line") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise DatasetError(
                f"{file}, line {number}: got {line[:60]!r}; expected <breed>_<number> <class> <species> <breed>"
            )
        rows.append((found["name"], int(found["number"]), found["breed"], split))
    schema = {"name": pl.String, "number": pl.Int64, "label": pl.String, "split": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _check_lists(base: Path, table: pl.DataFrame) -> None:
    twice = table.filter(pl.col("name").is_duplicated())
    if len(twice):
        raise DatasetError(f"the lists of {base} have {twice['name'][0]} twice; expected each photograph once")
    classes = table.select("number", "label").unique().sort("number", "label")
    for column in classes.columns:
        several = classes.filter(pl.col(column).is_duplicated())
        if len(several):
            one, other = several.filter(pl.col(column) == several[column][0]).head(2).iter_rows(named=True)
            raise DatasetError(
                f"the lists of {base} have {one['label']} as {one['number']} and {other['label']} as "
                f"{other['number']}; expected one number a breed"
            )


def _with_masks(base: Path, trimaps: Path, target: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Add mask and box."""
    keep_sources(target, [base, base / "images", trimaps])
    found = []
    with whole_folder(target) as beside:
        for name, path in table.select("name", "path").iter_rows():
            box = save_mask(fit_mask(_read(trimaps / f"{name}.png"), base / path), beside / f"{name}.png")
            found.append({"mask": (target.resolve() / f"{name}.png").as_posix(), **box})
    schema = {"mask": pl.String, **dict.fromkeys(BOX, pl.Float64)}
    return pl.concat([table, pl.DataFrame(found, schema=schema)], how="horizontal")


def _read(path: Path) -> Mask:
    """A trimap's foreground and border."""
    try:
        with Image.open(path) as image:
            trimap = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"trimap {path} cannot be read: {error}; get it again") from None
    known = (FOREGROUND, BACKGROUND, BORDER)
    strange = np.setdiff1d(trimap, known)
    if trimap.ndim != 2 or len(strange):
        raise DatasetError(f"trimap {path} has the value {strange[:1].tolist()}; expected one channel of {known}")
    return trimap != BACKGROUND
