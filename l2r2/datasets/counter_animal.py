"""CounterAnimal: animals before common and before rare backgrounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import polars as pl

from l2r2.datasets.dataset import Card, Dataset, make_dataset
from l2r2.errors import DatasetError
from l2r2.images import SUFFIXES

_CLASS = re.compile(r"(\d{1,3}) +(\S.*)")
_BACKGROUND = re.compile(r"(common|counter)(?:[-_ ]+(.+))?", re.IGNORECASE)
_SPLITS = {"common": "common", "counter": "rare"}
_COLUMNS = {
    "path": pl.String,
    "label": pl.String,
    "split": pl.String,
    "imagenet_index": pl.Int64,
    "background": pl.String,
}


def from_counter_animal(root: Path, out: Path) -> Dataset:
    """CounterAnimal: `root/<ImageNet index> <class>/{common-*,counter-*}/*`, or that below `root/LAION-final`.

    Test sets "common" and "rare" (the folders counter-…) and nothing to train on; labels are the classes' names, and
    the classes are in the order of their ImageNet indices. The paper does not say among which classes it recognises;
    here they are the set's own 45, not ImageNet's 1000. Two further columns, neither of them metadata:
    imagenet_index, and background, what the folder's name says after "common-" or "counter-".

    The published set has copies of photographs, also in both test sets; they are kept.

    Raises:
        DatasetError: another layout, a class without common or rare photographs, or a rule of `check_test_only`.
    Source: the paper, section 4.1 and appendix A; Wang et al. 2024, arXiv:2403.11497 (CounterAnimal).
    """
    base = root / "LAION-final" if (root / "LAION-final").is_dir() else root
    expected = f"{base}/<ImageNet index> <class>/{{common-*,counter-*}}/*"
    if not base.is_dir():
        raise DatasetError(f"{base} is no folder; expected {expected}")
    folders = [p for p in sorted(base.iterdir()) if p.is_dir() and not p.name.startswith((".", "_"))]
    classes = sorted((_index(folder, expected), folder) for folder in folders)
    if not classes:
        raise DatasetError(f"no class folders in {base}; expected {expected}")
    for (index, folder), (following, other) in pairwise(classes):
        if index == following:
            raise DatasetError(f"{folder} and {other} have one ImageNet index; expected each once")
    names = tuple(_name(folder) for _, folder in classes)
    rows = [row for index, folder in classes for row in _photographs(base, index, folder, expected)]
    table = pl.DataFrame(rows, schema=_COLUMNS)
    for split in _SPLITS.values():
        there = set(table.filter(pl.col("split") == split)["label"])
        absent = [name for name in names if name not in there]
        if absent:
            raise DatasetError(
                f"{len(absent)} of {len(names)} classes have no {split} photographs under {base}, first {absent[0]}; "
                f"expected {expected}"
            )
    return make_dataset(out, Card(name="counter-animal", root=base.resolve(), classes=names), table)


def _index(folder: Path, expected: str) -> int:
    match = _CLASS.fullmatch(folder.name)
    if match is None:
        raise DatasetError(f"{folder} is not named by an ImageNet index (0 to 999) and a class; expected {expected}")
    return int(match[1])


def _name(folder: Path) -> str:
    return folder.name.partition(" ")[2].strip()


def _photographs(base: Path, index: int, folder: Path, expected: str) -> Iterator[dict[str, str | int | None]]:
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        match = _BACKGROUND.fullmatch(place.name)
        if match is None:
            raise DatasetError(f"{place} is neither common-… nor counter-…; expected {expected}")
        for file in sorted(place.iterdir()):
            if file.suffix.lower() in SUFFIXES:
                yield {
                    "path": file.relative_to(base).as_posix(),
                    "label": _name(folder),
                    "split": _SPLITS[match[1].lower()],
                    "imagenet_index": index,
                    "background": match[2],
                }
