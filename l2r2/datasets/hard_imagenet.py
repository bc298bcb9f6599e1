"""Hard ImageNet: 15 classes of ImageNet-1k with masks, and the paper's long tail and constant test sets."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from l2r2.datasets.copies import keep_apart
from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.datasets.imagenet import class_folders
from l2r2.datasets.masks import fit_mask, keep_sources
from l2r2.datasets.wordnet import WNID, class_words, lemmas
from l2r2.errors import DatasetError
from l2r2.files import sha256, whole_folder
from l2r2.images import SUFFIXES

VAL_SHARE = 0.1
"""Of each class's train photographs. Source: the paper, appendix A."""

MAX_PICKLE_BYTES = 1 << 20
"""The published files hold a thousand short words at most."""


def from_hard_imagenet(
    imagenet: Path,
    masks: Path,
    out: Path,
    *,
    long_tail: Path | None = None,
    constant: Path | None = None,
    seed: int = 0,
) -> Dataset:
    """Hard ImageNet; labels are wnids, words the first lemma, column mask the path of a mask or null.

    Photographs are `imagenet/{train,val}/<wnid>/<name>`, masks `masks/{train,val}/<wnid>_<name>` of any image suffix.
    The classes are those of `meta/idx_to_wnid.pkl` and `meta/hard_imagenet_idx.pkl`, in or beside `masks`, where both
    are there, else those that have masks. ImageNet's validation split is test set "test"; val is a tenth of each class
    of train; a train photograph that is in a test set too is left out, and `Card.notes` counts them.

    Masks are binarised at half of white (a PNG of 0 and 1 only: at 0.5) and lie in the frame of the stored
    pixels: they are turned as the photograph is, and brought to its size. Those that are not usable as they are, are
    written to `out/masks`.

    Args:
        long_tail, constant: `<folder>/<class>/<name>`, a class by its wnid or one of its names; test sets "lt" and
            "ct". Their masks, where there are any: `<folder>_masks/<class>/<stem>` of any image suffix.
    Raises:
        DatasetError: another layout, photographs missing, a pickle that holds more than plain values, a mask that
            cannot be used, or a rule of `check`.
    Source: the paper, appendix A; Moayeri et al. 2022 (Hard ImageNet).
    """
    sources = [folder for folder in (imagenet, masks, long_tail, constant) if folder is not None]
    keep_sources(out / "masks", [*sources, *map(_masks_of, sources)])
    published = _published_masks(masks)
    wnids = _classes(masks, {name[: name.index("_")] for _, name in published})
    words = class_words(wnids)
    table = pl.concat(class_folders(imagenet, folder, split, wnids) for folder, split in _SPLITS.items())
    tables = [_with_masks(table, published)]
    tables += [_more(folder, name, wnids) for name, folder in (("lt", long_tail), ("ct", constant)) if folder]
    table, left_out = keep_apart(pl.concat(tables), VAL_SHARE, seed)
    table = _binary_masks(imagenet, table, out / "masks")
    with_mask = len(table) - table["mask"].null_count()
    notes = {"seed": seed, "val_share": VAL_SHARE, "left_out_of_train": left_out, "masks": with_mask}
    card = Card(name="hard-imagenet", root=imagenet.resolve(), words=words, notes=notes)
    return make_dataset(out, card, table)


_SPLITS = {"train": "train", "val": "test"}
"""Folder of ImageNet and of the masks → split."""


def _masks_of(folder: Path) -> Path:
    return folder.with_name(folder.name + "_masks")


def _published_masks(masks: Path) -> dict[tuple[str, str], Path]:
    """(split, `<wnid>_<stem>`) → mask."""
    found: dict[tuple[str, str], Path] = {}
    for folder, split in _SPLITS.items():
        place = masks / folder
        if not place.is_dir():
            raise DatasetError(f"{place} is no folder; expected {masks}/{{train,val}}/<wnid>_<name of the photograph>")
        files = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES)
        strange = [p for p in files if not WNID.fullmatch(p.stem.partition("_")[0])]
        if strange or not files:
            what = f"{strange[0]} is not named" if strange else f"{place} has no masks; expected"
            raise DatasetError(f"{what} <wnid>_<name of the photograph>")
        found |= {(split, p.stem): p for p in files}
    return found


def _classes(masks: Path, masked: set[str]) -> tuple[str, ...]:
    """The wnids of the published lists, or those that have masks."""
    for meta in (masks / "meta", masks.parent / "meta"):
        files = meta / "idx_to_wnid.pkl", meta / "hard_imagenet_idx.pkl"
        if all(file.is_file() for file in files):
            wnids = _listed(*files)
            strange = sorted(masked - set(wnids))
            if strange:
                raise DatasetError(f"{masks} has masks of {strange[0]}, which {files[1]} does not list")
            return wnids
    return tuple(sorted(masked))


def _listed(names: Path, places: Path) -> tuple[str, ...]:
    wnid_of, indices = read_plain_pickle(names), read_plain_pickle(places)
    if not isinstance(wnid_of, dict) or not all(isinstance(v, str) and WNID.fullmatch(v) for v in wnid_of.values()):
        raise DatasetError(f"{names} is no dict of index to wnid; {_WITHOUT}")
    if not isinstance(indices, list) or not all(isinstance(i, int) and i in wnid_of for i in indices) or not indices:
        raise DatasetError(f"{places} is no list of indices that {names.name} has; {_WITHOUT}")
    return tuple(sorted({wnid_of[i] for i in indices}))


_WITHOUT = "remove it, and the classes are those that have masks"


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, text and numbers; a download must not get to name anything that is called."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it wants {module}.{name}, only plain values are read")


def read_plain_pickle(path: Path) -> object:
    """Read a pickle of lists, tuples, sets, dicts, text and numbers; nothing is imported or called.

    Raises:
        DatasetError: it holds anything else, is damaged, or is larger than `MAX_PICKLE_BYTES`.
    """
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise DatasetError(
            f"{path} has {path.stat().st_size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read; {_WITHOUT}"
        )
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DatasetError(f"{path} cannot be read: {str(error) or type(error).__name__}; {_WITHOUT}") from error


def _with_masks(table: pl.DataFrame, masks: dict[tuple[str, str], Path]) -> pl.DataFrame:
    """Add column mask; the names of ImageNet's photographs are unique within a class and split."""
    keys = [(split, f"{label}_{Path(path).stem}") for split, label, path in table["split", "label", "path"].iter_rows()]
    return _matched(table, keys, masks)


def _matched(table: pl.DataFrame, keys: list[tuple[str, str]], masks: dict[tuple[str, str], Path]) -> pl.DataFrame:
    lost = sorted(set(masks) - set(keys))
    if lost:
        raise DatasetError(f"{len(lost)} of {len(masks)} masks have no photograph, first {masks[lost[0]]}")
    found = [masks.get(key) for key in keys]
    return table.with_columns(mask=pl.Series([None if p is None else str(p.resolve()) for p in found], dtype=pl.String))


def _more(folder: Path, split: str, wnids: tuple[str, ...]) -> pl.DataFrame:
    """A test set of class folders elsewhere; paths are absolute."""
    expected = f"{folder}/<wnid or name of the class>/*"
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; expected {expected}")
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise DatasetError(f"no photographs under {folder}; expected {expected}")
    names = {_plain(name): wnid for wnid in wnids for name in (wnid, *lemmas(wnid), *class_words([wnid]).values())}
    strange = sorted({p.parent.name for p in files if _plain(p.parent.name) not in names})
    if strange:
        known = ", ".join(f"{wnid} ({words})" for wnid, words in class_words(wnids).items())
        raise DatasetError(f"{folder / strange[0]} is no class of Hard ImageNet; expected one of {known}")
    digests = [sha256(p) for p in files]
    table = pl.DataFrame(
        {
            "path": [p.resolve().as_posix() for p in files],
            "label": [names[_plain(p.parent.name)] for p in files],
            "group": digests,
            "digest": digests,
        }
    ).with_columns(split=pl.lit(split))
    masks = sorted(p for p in _masks_of(folder).glob("*/*") if p.suffix.lower() in SUFFIXES)
    return _matched(table, [(p.parent.name, p.stem) for p in files], {(p.parent.name, p.stem): p for p in masks})


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _binary_masks(root: Path, table: pl.DataFrame, target: Path) -> pl.DataFrame:
    """Replace each mask that is not usable as it is by a PNG under `target`."""
    paths: list[str | None] = []
    with whole_folder(target) as beside:
        for row in table.iter_rows(named=True):
            if row["mask"] is None:
                paths.append(None)
                continue
            photo = root / row["path"]
            mask = _binary(Path(row["mask"]), photo)
            if mask is not None:
                place = Path(row["split"], f"{row['label']}_{photo.name}.png")
                (beside / place).parent.mkdir(exist_ok=True)
                mask.save(beside / place)
            paths.append(row["mask"] if mask is None else (target.resolve() / place).as_posix())
    return table.with_columns(mask=pl.Series(paths, dtype=pl.String))


def _binary(path: Path, photo: Path) -> Image.Image | None:
    """Black and white, in the frame of the upright photograph; None: the file is that already."""
    try:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"mask {path} cannot be read: {error}; get it again") from None
    is_png = path.suffix.lower() == ".png"
    white = 1 if is_png and grey.max(initial=0) <= 1 else 255
    fitted = fit_mask(grey > white / 2, photo)
    if is_png and np.array_equal(fitted, grey > 0):
        return None
    return Image.fromarray(fitted)
