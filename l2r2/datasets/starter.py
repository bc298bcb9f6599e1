"""Starter data: photographic cut-outs on photographs of scenes, in the manner of Waterbirds (Sagawa et al. 2020).

Each class has a home scene. In train, val and `iid` an object stands before its home with probability ρ, else before
any other scene; in `uniform` before each scene alike; in `reversed` with probability ρ before a foreign class's home.
The three test sets hold the same objects, sizes and places, so that only the scene differs between them.

Cut-outs and scene photographs are split before anything is composed: none is in two of train, val and test. With some
170 cut-outs this is a weak benchmark: it shows that the parts work, not how good they are on yours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from PIL import Image
from pydantic import Field

from l2r2.config import Settings
from l2r2.datasets.dataset import Card, load_dataset, make_dataset
from l2r2.datasets.split import assign
from l2r2.errors import DatasetError
from l2r2.files import whole_file

CLASSES: dict[str, tuple[tuple[str, ...], str]] = {
    "bird": (("animals/birds",), "water"),
    "flower": (("plants/flowers",), "wood"),
    "mammal": (("animals/mammals",), "trees"),
    "produce": (("food/fruit", "food/vegetables"), "rock"),
}
"""Class → folders of cut-outs, home scene."""

SCENES: dict[str, tuple[str, ...]] = {
    "rock": ("cliff", "mudstone", "rocks"),
    "trees": ("corn_maze", "redwoods_above", "sun_behind_leaves", "trees_above", "trees_at_dusk"),
    "water": ("jellyfish", "ocean_splash", "ocean_waves"),
    "wood": ("burnt_bark", "mossy_bark", "mossy_log"),
}
"""Scene → photographs. Left out, as no such scene: lighthouse, sheep, spiders_web, sun_behind_clouds,
wool_mill_machine."""

FOREIGN = {"rock": "water", "water": "trees", "trees": "wood", "wood": "rock"}
"""Home scene → the scene that `reversed` puts its class before."""

NOT_PHOTOGRAPHS = ("cartoon", "plastic", "hedgehog", "edward_bear")
"""Folders and names left out: drawings, toys, plastic."""

TEST_SETS = ("iid", "uniform", "reversed")

_MONTHS = tuple(str(month) for month in range(1, 13))

METADATA: dict[str, dict[str, dict[str, float]]] = {
    "habitat": {
        "bird": {"shore": 0.45, "woodland": 0.25, "meadow": 0.15, "garden": 0.10, "field": 0.05},
        "flower": {"meadow": 0.40, "garden": 0.35, "woodland": 0.15, "field": 0.05, "shore": 0.05},
        "mammal": {"woodland": 0.40, "field": 0.25, "meadow": 0.20, "shore": 0.10, "garden": 0.05},
        "produce": {"garden": 0.45, "field": 0.40, "meadow": 0.05, "woodland": 0.05, "shore": 0.05},
    },
    "substrate": {
        "bird": {"air": 0.30, "branch": 0.30, "ground": 0.25, "water": 0.15},
        "flower": {"soil": 0.60, "ground": 0.30, "branch": 0.10},
        "mammal": {"ground": 0.60, "soil": 0.20, "water": 0.15, "branch": 0.05},
        "produce": {"soil": 0.45, "branch": 0.35, "ground": 0.20},
    },
    "month": {
        "bird": dict.fromkeys(_MONTHS, 1 / 12),
        "flower": {"3": 0.05, "4": 0.15, "5": 0.25, "6": 0.25, "7": 0.15, "8": 0.10, "9": 0.05},
        "mammal": dict.fromkeys(_MONTHS, 1 / 12),
        "produce": {"6": 0.05, "7": 0.15, "8": 0.25, "9": 0.30, "10": 0.20, "11": 0.05},
    },
}
"""Source → class → P(value | class). Made up; a tenth of the values are then withheld."""

WITHHELD = 0.1


class StarterSettings(Settings):
    """How the starter data are composed."""

    seed: int = 0
    rho: float = Field(0.95, ge=0.25, le=1)
    """P(home scene | class) in train, val and iid; of a foreign home in reversed."""
    train: int = Field(480, ge=8)
    """Photographs in train."""
    held_out: int = Field(240, ge=8)
    """Photographs in val and in each test set."""


@dataclass(frozen=True, slots=True)
class _Placement:
    """One object: which cut-out, how large, where, which way round."""

    label: str
    stamp: Path
    reach: float
    x: float
    y: float
    flip: bool
    portrait: bool


WIDE, HIGH = 480, 360
"""Pixels of a composed photograph, landscape; portrait is the other way round."""

LETTERBOX = 24
"""Grey level, [0, 255]; rows and columns that are nowhere lighter are no part of the scene."""

MAX_ENLARGEMENT = 2.5
"""Of a cut-out; some are only 50 pixels wide."""


def make_starter(out: Path, stamps: Path, scenes: Path, settings: StarterSettings = StarterSettings()) -> Iterator[int]:
    """Compose the data set into `out`; yields how many photographs are done after each.

    The same seed and sources give the same photographs, byte for byte, under one version of Pillow. A set that is
    already there, whole and with the same settings, is kept.

    Raises:
        DatasetError: a folder of cut-outs or a scene photograph is missing.
    """
    if starter_is_there(out, settings):
        return
    cutouts = {label: _cutouts(stamps, folders) for label, (folders, _) in CLASSES.items()}
    shares = {"train": 0.5, "val": 0.2, "test": 0.3}
    stamp_split = {
        label: assign([path.stem for path in paths], shares, settings.seed) for label, paths in cutouts.items()
    }
    even = {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}
    scene_split = {scene: assign(list(names), even, settings.seed) for scene, names in SCENES.items()}
    photographs = {name: _scene(scenes, name) for names in SCENES.values() for name in names}
    rows, done = [], 0
    for number, split in enumerate(("train", "val", "test")):
        count = settings.train if split == "train" else settings.held_out
        usable = {label: [p for p in paths if stamp_split[label][p.stem] == split] for label, paths in cutouts.items()}
        for i in range(count):
            label = sorted(CLASSES)[i % len(CLASSES)]
            place = _place(np.random.default_rng([settings.seed, number, i]), label, usable[label])
            for set_number, set_name in enumerate(TEST_SETS if split == "test" else (split,)):
                rng = np.random.default_rng([settings.seed, number, i, set_number])
                scene = _choose_scene(rng, CLASSES[label][1], set_name, settings.rho)
                behind = str(rng.choice(sorted(n for n, s in scene_split[scene].items() if s == split)))
                name = f"{set_name}/{label}-{i:04d}"
                photo, mask = _compose(rng, place, photographs[behind])
                rows.append(
                    {
                        "path": f"{name}.jpg",
                        "label": label,
                        "split": set_name,
                        "group": f"{label}/{place.stamp.stem}",
                        "scene": scene,
                        "scene_photo": behind,
                        "mask": f"{name}-mask.png",
                        **_box(mask),
                        **_metadata(np.random.default_rng([settings.seed, number, i, 99]), label),
                    }
                )
                _save(out / f"{name}.jpg", photo, format="JPEG", quality=92)
                _save(out / f"{name}-mask.png", Image.fromarray(mask), format="PNG")
                done += 1
                yield done
    card = Card(
        name="starter",
        metadata=tuple(METADATA),
        simulated_metadata=True,
        notes={**settings.model_dump(), "settings": settings.digest(), "licence": "GPL-2 (Tux Paint)"},
    )
    # A cut-out that fell into several rows of one split is one group, so photographs never repeat across splits.
    make_dataset(out, card, pl.DataFrame(rows))


def starter_is_there(out: Path, settings: StarterSettings) -> bool:
    """Whether `out` already holds the whole set with these settings; what cannot be read is made again."""
    try:
        dataset = load_dataset(out)
    except DatasetError:
        return False
    if dataset.card.notes.get("settings") != settings.digest():
        return False
    return all((out / name).is_file() for column in ("path", "mask") for name in dataset.table[column])


def starter_size(settings: StarterSettings) -> int:
    """How many photographs there will be."""
    return settings.train + settings.held_out * (1 + len(TEST_SETS))


def _cutouts(stamps: Path, folders: Sequence[str]) -> list[Path]:
    found = []
    for folder in folders:
        if not (stamps / folder).is_dir():
            raise DatasetError(f"{stamps / folder} is no folder; expected the stamps of tuxpaint-stamps-default")
        found += [p for p in (stamps / folder).rglob("*.png") if not any(n in str(p) for n in NOT_PHOTOGRAPHS)]
    return sorted(found)


def _scene(scenes: Path, name: str) -> Image.Image:
    try:
        with Image.open(scenes / f"{name}.jpg") as image:
            photo = image.convert("RGB")
    except OSError as error:
        raise DatasetError(
            f"{scenes / name}.jpg cannot be read ({error}); expected the scenes of tuxpaint-data"
        ) from None
    lit = photo.convert("L").point(lambda v: 255 * (v > LETTERBOX)).getbbox()  # one photograph has black bars
    return photo.crop(lit)


def _place(rng: np.random.Generator, label: str, stamps: Sequence[Path]) -> _Placement:
    return _Placement(
        label=label,
        stamp=stamps[int(rng.integers(len(stamps)))],
        reach=float(rng.uniform(0.30, 0.75)),
        x=float(rng.uniform()),
        y=float(rng.uniform()),
        flip=bool(rng.integers(2)),
        portrait=bool(rng.integers(4) == 0),
    )


def _choose_scene(rng: np.random.Generator, home: str, set_name: str, rho: float) -> str:
    if set_name == "uniform":
        return str(rng.choice(sorted(SCENES)))
    likely = FOREIGN[home] if set_name == "reversed" else home
    return likely if rng.uniform() < rho else str(rng.choice(sorted(set(SCENES) - {likely})))


def _compose(rng: np.random.Generator, place: _Placement, scene: Image.Image) -> tuple[Image.Image, np.ndarray]:
    width, height = (HIGH, WIDE) if place.portrait else (WIDE, HIGH)
    zoom = float(rng.uniform(0.6, 1.0)) * min(scene.width / width, scene.height / height)
    wide, high = width * zoom, height * zoom
    left, top = float(rng.uniform(0, scene.width - wide)), float(rng.uniform(0, scene.height - high))
    photo = scene.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    if rng.integers(2):
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with Image.open(place.stamp) as image:
        stamp = image.convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox())
    scale = min(place.reach * HIGH / max(stamp.size), MAX_ENLARGEMENT)
    size = max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale))
    stamp = stamp.resize(size, Image.Resampling.BICUBIC)
    if place.flip:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    at = round(place.x * (width - size[0])), round(place.y * (height - size[1]))
    photo.paste(stamp, at, stamp)
    mask = np.zeros((height, width), dtype=bool)
    mask[at[1] : at[1] + size[1], at[0] : at[0] + size[0]] = np.asarray(stamp.getchannel("A")) >= 128
    return photo, mask


def _box(mask: np.ndarray) -> dict[str, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return {name: float(edge) for name, edge in zip(("box_x0", "box_y0", "box_x1", "box_y1"), edges, strict=True)}


def _metadata(rng: np.random.Generator, label: str) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for source, table in METADATA.items():
        options = table[label]
        value = str(rng.choice(list(options), p=list(options.values())))
        values[source] = None if rng.uniform() < WITHHELD else value
    return values


def _save(path: Path, image: Image.Image, format: Literal["JPEG", "PNG"], **options: int) -> None:  # noqa: A002
    with whole_file(path) as beside:
        image.save(beside, format, **options)
