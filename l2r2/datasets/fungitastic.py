"""FungiTastic-Mini: fungi with habitat, substrate, month, and masks of their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from l2r2.datasets.copies import with_digests
from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.datasets.masks import fit_mask, keep_sources, save_mask
from l2r2.errors import DatasetError
from l2r2.files import whole_folder
from l2r2.localization.truth import BOX
from l2r2.types import Mask

NAME = "FungiTastic-Mini"

SIZES = ("300p", "500p", "720p", "fullsize")
"""Folders of one photograph in several sizes."""

METADATA = ("habitat", "substrate", "month")

NOTES = ("metaSubstrate", "latitude", "longitude", "elevation", "biogeographicalRegion")
"""Columns that are kept, where they are there, but are no metadata sources."""

_SPLITS = {"train": "Train", "val": "Val", "test": "Test", "dna": "DNA-Test"}
_FOLDERS = {"train": "train", "val": "val", "test": "test", "dna": "test"}
_MASKS = {"train": "Train", "val": "Validation"}
_NAMES = ("scientificName", "species")
_IDS = ("category_id", "class_id")
_TRUE = ("1", "1.0", "true", "yes")


def from_fungitastic(root: Path, out: Path, *, size: str = "500p", seed: int = 0) -> Dataset:
    """FungiTastic-Mini: `root/metadata/FungiTastic-Mini/*.csv`, `root/FungiTastic-Mini/{train,val,test}/<size>/*`.

    The published splits are kept; "dna" is a second test set where its CSV is there. Labels are scientific names, or
    species where only those name each category once. Category -1 is unknown: such a label is null, as are all of a
    test set without labels, unless `root/metadata/FungiTastic/FungiTastic-test-DEV.csv` has them. Groups are
    observations. `Card.hazardous` are the species that are poisonous in any row of train.

    Where `root/masks` has them, the masks of all parts of a photograph are united, brought to the photograph's size
    and written to `out/masks`; boxes are around them. A photograph that a later split has too, under another
    observation, is left out of the earlier one; `Card.notes` counts them.

    Args:
        size: Of the photographs, one of `SIZES`.
        seed: Noted only; nothing is drawn.
    Raises:
        DatasetError: another layout, photographs missing, a CSV or a mask that cannot be used, or a rule of `check`.
    Source: the paper, section 4.1 and appendix A; Picek et al. 2024, arXiv:2408.13632 (FungiTastic).
    """
    if size not in SIZES:
        raise DatasetError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    tables = {split: _read(file, split) for split, file in _csv_files(root).items()}
    for folder in sorted({_FOLDERS[split] for split in tables}):
        if not (root / NAME / folder / size).is_dir():
            raise DatasetError(f"{root / NAME / folder / size} is no folder; expected the photographs of size {size}")
    path = pl.format(f"{NAME}/{{}}/{size}/{{}}", pl.col("split").replace_strict(_FOLDERS), "filename")
    table = _labelled(root, tables).with_columns(path=path, group=pl.col("observationID"))
    table = with_digests(root, table)
    table, left_out = _later_only(table)
    poisonous = (pl.col("split") == "train") & pl.col("poisonous").str.to_lowercase().is_in(_TRUE)
    hazardous = sorted(set(table.filter(poisonous)["label"].drop_nulls()))
    table = _with_masks(root, out, table)
    kept = ["path", "label", "split", "group", "digest", *METADATA, *NOTES, *BOX, "mask"]
    card = Card(
        name="fungitastic-mini",
        root=root.resolve(),
        metadata=METADATA,
        hazardous=tuple(hazardous),
        notes={"size": size, "seed": seed, "left_out": left_out},
    )
    table = table.select([c for c in kept if c in table.columns])
    return make_dataset(out, card, table, allow_absent_in_val=True)  # of 215 species, val has 196


def decode_mask(rle: str | Sequence[int], width: int, height: int) -> Mask:
    """The mask of one part.

    Args:
        rle: Lengths of runs, row by row, of background and foreground in turn, background first; then four integers
            of a box, which are not used.
    Raises:
        DatasetError: no such numbers, or the runs do not cover height × width pixels; says what was got and expected.
    """
    try:
        values = rle.strip(" []").split(",") if isinstance(rle, str) else rle
        runs = np.array([int(value) for value in values], dtype=np.int64)[:-4]
    except (TypeError, ValueError, OverflowError):
        raise DatasetError(f"its rle is {str(rle)[:40]!r}; expected whole numbers") from None
    if (runs < 0).any():
        raise DatasetError(f"its rle has a run of {runs.min()}; expected lengths of 0 or more")
    if runs.sum() != height * width or not runs.sum():
        raise DatasetError(f"its runs sum to {runs.sum()}; expected {height} × {width} = {height * width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _csv_files(root: Path) -> dict[str, Path]:
    """Split → CSV, under either of its published names."""
    folder = root / "metadata" / NAME
    if not folder.is_dir():
        raise DatasetError(
            f"{root} is no FungiTastic: {folder} is no folder; expected {root}/metadata/{NAME}/*.csv and "
            f"{root}/{NAME}/{{train,val,test}}/<size>/*"
        )
    found = {}
    for split, part in _SPLITS.items():
        names = [f"{NAME}-ClosedSet-{part}.csv", f"{NAME}-{part}.csv"]
        files = [folder / name for name in names if (folder / name).is_file()]
        if not files and split != "dna":
            raise DatasetError(f"{folder} has no {split} table; expected {names[0]} or {names[1]}")
        if files:
            found[split] = files[0]
    return found


def _read(file: Path, split: str) -> pl.DataFrame:
    """One split: all columns of its CSV as text, blanks as null; split, month and category made."""
    table = _read_csv(file, ("filename", "observationID", "habitat", "substrate"))
    dated = [c for c in ("month", "eventDate") if c in table.columns]
    if not dated:
        raise DatasetError(f"{file} lacks column 'month'; it has {', '.join(table.columns)}")
    identifier = [c for c in _IDS if c in table.columns]
    if "eventDate" in dated:
        table = table.with_columns(eventDate=pl.col("eventDate").str.extract(r"^\d{4}-(\d{1,2})"))
    absent = {c: pl.lit(None, pl.String) for c in (*_NAMES, "poisonous") if c not in table.columns}
    return table.with_columns(
        split=pl.lit(split),
        month=pl.coalesce(dated),
        category=pl.coalesce([*identifier, pl.lit(None)]).cast(pl.Float64, strict=False).cast(pl.Int64),
        **absent,
    )


def _read_csv(file: Path, required: Sequence[str]) -> pl.DataFrame:
    try:
        table = pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{file} cannot be read: {str(error).splitlines()[0]}; expected CSV in UTF-8") from None
    for column in required:
        if column not in table.columns:
            raise DatasetError(f"{file} lacks column {column!r}; it has {', '.join(table.columns)}")
    return table.with_columns(pl.all().str.strip_chars().replace("", None))


def _labelled(root: Path, tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """All splits with their labels. A test set may have categories, names, or neither."""
    table = pl.concat(tables.values(), how="diagonal")
    fitting, known = pl.col("split").is_in(["train", "val"]), pl.col("category") != -1
    usable = [c for c in _NAMES if table.filter(fitting)[c].null_count() < table.select(fitting.sum()).item()]
    if not usable:
        raise DatasetError(
            f"{root / 'metadata' / NAME} has no names in train; expected column 'scientificName' or 'species', "
            f"it has {', '.join(tables['train'].columns)}"
        )
    pairs = table.filter(known)
    name = next((c for c in usable if _several_names(pairs, c) is None), None)
    if name is None:
        raise DatasetError(f"{root / 'metadata' / NAME}: {_several_names(pairs, usable[-1])}; expected one to one")
    developed = root / "metadata" / "FungiTastic" / "FungiTastic-test-DEV.csv"
    if developed.is_file():  # its categories are those of the whole FungiTastic, so names alone are of use
        more = _read_csv(developed, ("filename", name)).unique("filename", keep="first")
        table = table.join(more.select("filename", developed=name), on="filename", how="left", maintain_order="left")
    else:
        table = table.with_columns(developed=pl.lit(None, pl.String))
    of_train = table.filter(known & (pl.col("split") == "train")).select("category", name).drop_nulls().unique()
    by_category = pl.col("category").replace_strict(
        of_train["category"], of_train[name], default=None, return_dtype=pl.String
    )
    unknown = (pl.col("category") == -1).fill_null(value=False)
    return table.with_columns(label=pl.when(~unknown).then(pl.coalesce(name, by_category, "developed")))


def _several_names(pairs: pl.DataFrame, name: str) -> str | None:
    """What is not one to one between categories and names, if anything."""
    distinct = pairs.select("category", name).drop_nulls().unique().sort("category", name)
    for column, other, verb in (("category", name, "is named"), (name, "category", "is category")):
        twice = distinct.filter(pl.col(column).is_duplicated()).sort(column, other)
        if len(twice):
            values = twice.filter(pl.col(column) == twice[column][0])[other].to_list()
            return f"{column} {twice[column][0]!r} {verb} {' and '.join(map(str, values))}"
    return None


def _later_only(table: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Leave out of train what val or a test set has too, and out of val what a test set has; published test sets stay.

    One observation in two of them is a fault of another kind, which `check` refuses; its copies are not hidden here.
    """
    taken: set[str] = set()
    observed: set[str | None] = set()
    leave = pl.lit(value=False)
    for splits in (["test", "dna"], ["val"], ["train"]):
        here = pl.col("split").is_in(splits)
        leave |= here & pl.col("digest").is_in(list(taken)) & ~pl.col("group").is_in(list(observed))
        taken |= set(table.filter(here)["digest"])
        observed |= set(table.filter(here)["group"])
    kept = table.filter(~leave.fill_null(value=True))
    return kept, len(table) - len(kept)


def _with_masks(root: Path, out: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Add mask and box where the published masks are there."""
    files = {split: root / "masks" / f"{NAME}-{part}Masks.parquet" for split, part in _MASKS.items()}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        return table
    target = out / "masks"
    keep_sources(target, [root, *files.values()])
    found = []
    with whole_folder(target) as beside:
        for split, file in files.items():
            rows = table.filter(pl.col("split") == split)
            paths = dict(rows.select("filename", "path").iter_rows())
            parts = _read_parts(file)
            matched = parts.filter(pl.col("file_name").is_in(list(paths)))
            if matched.is_empty():
                raise DatasetError(
                    f"no mask of {file} is of a photograph of {split}; it has {parts['file_name'][:1].to_list()}, "
                    f"expected names such as {next(iter(paths))}"
                )
            for (name,), part in matched.group_by("file_name", maintain_order=True):
                mask = fit_mask(_united(file, part), root / paths[name])
                place = Path(split, f"{name}.png")
                box = save_mask(mask, beside / place)
                found.append({"path": paths[name], "mask": (target.resolve() / place).as_posix(), **box})
    schema = {"path": pl.String, "mask": pl.String, **dict.fromkeys(BOX, pl.Float64)}
    return table.join(pl.DataFrame(found, schema=schema), on="path", how="left", maintain_order="left")


def _read_parts(file: Path) -> pl.DataFrame:
    """One row a part: file_name, label, width, height, rle."""
    try:
        table = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(f"{file} cannot be read: {str(error).splitlines()[0]}; expected Parquet") from None
    for column in ("file_name", "label", "width", "height", "rle"):
        if column not in table.columns:
            raise DatasetError(f"{file} lacks column {column!r}; it has {', '.join(table.columns)}")
    return table.with_columns(
        pl.col("file_name").cast(pl.String), pl.col("width", "height").cast(pl.Int64, strict=False)
    )


def _united(file: Path, parts: pl.DataFrame) -> Mask:
    """All parts of one photograph as one mask."""
    masks: list[Mask] = []
    for name, label, width, height, rle in parts.select("file_name", "label", "width", "height", "rle").iter_rows():
        try:
            masks.append(decode_mask(rle, width or 0, height or 0))
        except DatasetError as error:
            raise DatasetError(f"{file}, part {label!r} of {name}: {error}") from None
        if masks[-1].shape != masks[0].shape:
            first = f"{masks[0].shape[1]}×{masks[0].shape[0]}"
            raise DatasetError(
                f"{file}, part {label!r} of {name}: it is {width}×{height}; expected {first} as the first"
            )
    return np.logical_or.reduce(masks)
