"""Miniatures of published layouts, with real files: FungiTastic-Mini, Spawrious, Stanford Dogs, Oxford-IIIT Pet."""

import csv
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl
import scipy.io
import typer
from PIL import Image

from l2r2.cli.published import register

SIZE = (24, 18)
"""Width and height of a photograph."""


def commands() -> typer.Typer:
    """`l2r2 data` with the published sets alone."""
    app = typer.Typer()
    register(app)
    return app


def draw(path: Path, seed: int, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """A photograph of noise, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return path


FUNGI = (
    ("Amanita muscaria", 3, "1"),
    ("Boletus edulis", 7, "0"),
    ("Galerina marginata", 12, "1"),
)
"""Scientific name, category, whether poisonous."""

PUBLISHED = (
    *("eventDate", "year", "month", "day", "habitat", "substrate", "metaSubstrate", "countryCode", "region"),
    *("district", "latitude", "longitude", "coorUncert", "elevation", "landcover", "biogeographicalRegion", "kingdom"),
    *("genus", "species", "scientificName", "observationID", "filename", "category_id", "poisonous"),
    "iucnRedListCategory",
)
"""Columns of a CSV of FungiTastic-Mini."""

OBSERVATIONS = {"train": 4, "val": 2, "test": 2}
"""Observations of each species; each of two photographs."""


def fungi_rows() -> dict[str, list[dict[str, str]]]:
    """Split → rows. Every species is in every split; June in train, July in val, August in test."""
    rows: dict[str, list[dict[str, str]]] = {}
    for number, (split, count) in enumerate(OBSERVATIONS.items()):
        rows[split] = []
        for k, (name, category, poisonous) in enumerate(FUNGI):
            for i in range(2 * count):
                observation = 1000 * number + 100 * k + i // 2
                rows[split].append(
                    dict.fromkeys(PUBLISHED, "")
                    | {
                        "eventDate": f"20{21 + number}-{6 + number:02d}-03T00:00:00.000000Z",
                        "month": str(6 + number),
                        "habitat": "Mixed woodland" if k else "Deciduous woodland, beech",
                        "substrate": "soil",
                        "latitude": "55.9",
                        "elevation": "12",
                        "species": name,
                        "scientificName": name,
                        "observationID": str(observation),
                        "filename": f"{i % 2}-{observation}.JPG",
                        "category_id": str(category),
                        "poisonous": poisonous,
                    }
                )
    return rows


def fungitastic(root: Path, rows=None, between: str = "ClosedSet-", size: str = "500p", photos: bool = True) -> Path:
    """`metadata/FungiTastic-Mini/*.csv` and `FungiTastic-Mini/{train,val,test}/<size>/*`; "dna" lies with test."""
    for split, part in (rows or fungi_rows()).items():
        name = {"train": "Train", "val": "Val", "test": "Test", "dna": "DNA-Test"}[split]
        write_csv(root / "metadata" / "FungiTastic-Mini" / f"FungiTastic-Mini-{between}{name}.csv", part)
        folder = {"dna": "test"}.get(split, split)
        for row in part if photos else ():
            number, _, observation = row["filename"].partition(".")[0].partition("-")
            draw(root / "FungiTastic-Mini" / folder / size / row["filename"], 2 * int(observation) + int(number))
    return root


def write_csv(file: Path, rows: list[dict[str, str]]) -> Path:
    """Quoted where needed, as published."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def encode(mask: np.ndarray) -> list[int]:
    """Runs row by row, the first of zeros (so maybe of length 0), then a box of four numbers."""
    runs = [0] if mask.flat[0] else []
    runs += [len(list(run)) for _, run in groupby(mask.ravel().tolist())]
    rows, columns = np.nonzero(mask)
    return [*runs, int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())]


def fungi_masks(root: Path, parts, split: str = "Train", as_text: bool = False) -> Path:
    """`masks/FungiTastic-Mini-<split>Masks.parquet` of (file name, part, mask), one row a part."""
    file = root / "masks" / f"FungiTastic-Mini-{split}Masks.parquet"
    file.parent.mkdir(exist_ok=True)
    rows = [
        {
            "file_name": name,
            "label": part,
            "width": mask.shape[1],
            "height": mask.shape[0],
            "rle": ", ".join(map(str, encode(mask))) if as_text else encode(mask),
        }
        for name, part, mask in parts
    ]
    pl.DataFrame(rows).write_parquet(file)
    return file


SCENES = ("beach", "desert", "dirt", "jungle", "mountain", "snow")

DOGS = ("bulldog", "corgi", "dachshund", "labrador")


def spawrious(root: Path, per_cell: int) -> Path:
    """`spawrious224/{0,1}/<scene>/<class>/*.png`, every class before every scene."""
    number = 0
    for environment in "01":
        for scene in SCENES:
            for label in DOGS:
                for i in range(per_cell):
                    number += 1
                    name = f"{label}_{scene}_{i}.png"
                    draw(root / "spawrious224" / environment / scene / label / name, number, (4, 4))
    return root


BREEDS = ("n02085620-Chihuahua", "n02098105-soft-coated_wheaten_terrier", "n02115641-dingo")
"""Folders of Stanford Dogs."""

VOC = """<annotation>
\t<folder>02085620</folder>
\t<filename>%s</filename>
\t<size><width>24</width><height>18</height><depth>3</depth></size>
\t<segment>0</segment>
{}
</annotation>
"""

OBJECT = """\t<object><name>dog</name><pose>Unspecified</pose>
\t\t<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
\t</object>"""


def stanford_dogs(root: Path, train: int = 9, test: int = 3) -> Path:
    """`Images`, `Annotation`, `{train,test}_list.mat`; one dog in the box (2, 1)–(15, 10) of each photograph."""
    entries: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for k, folder in enumerate(BREEDS):
        for i in range(train + test):
            entry = f"{folder}/{folder.partition('-')[0]}_{100 + i}"
            draw(root / "Images" / f"{entry}.jpg", 100 * k + i)
            annotate(root, entry, (2, 1, 15, 10))
            entries["train" if i < train else "test"].append((f"{entry}.jpg", k + 1))
    for split, listed in entries.items():
        write_list(root / f"{split}_list.mat", listed)
    return root


def annotate(root: Path, entry: str, *boxes: tuple[int, int, int, int]) -> Path:
    """A VOC annotation; its file has no suffix."""
    file = root / "Annotation" / entry
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(VOC.format("\n".join(OBJECT.format(*box) for box in boxes)))
    return file


def write_list(file: Path, listed: list[tuple[str, int]]) -> Path:
    """A cell array of names and a column of classes, counted from 1."""
    names = np.empty((len(listed), 1), dtype=object)
    names[:, 0] = [name for name, _ in listed]
    numbers = np.array([[number] for _, number in listed], dtype=np.uint8)
    scipy.io.savemat(file, {"file_list": names, "annotation_list": names, "labels": numbers})
    return file


PETS = ("Abyssinian", "american_bulldog", "Sphynx")
"""Breeds of Oxford-IIIT Pet; numbers 1, 2 and 34."""

NUMBERS = (1, 2, 34)


def oxford_pets(root: Path, trainval: int = 9, test: int = 3) -> Path:
    """`oxford-iiit-pet/{images,annotations}`; each trimap a foreground of 4 × 3 within a border one pixel wide."""
    base = root / "oxford-iiit-pet"
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for k, (breed, number) in enumerate(zip(PETS, NUMBERS, strict=True)):
        for i in range(trainval + test):
            name = f"{breed}_{i + 1}"
            draw(base / "images" / f"{name}.jpg", 100 * k + i)
            trimap(base, name)
            lines["trainval" if i < trainval else "test"].append(f"{name} {number} {1 + (k == 1)} {number}")
    for split, listed in lines.items():
        (base / "annotations" / f"{split}.txt").write_text("\n".join(listed) + "\n")
    return root


def trimap(base: Path, name: str, size: tuple[int, int] = SIZE) -> Path:
    """Border from (5, 2) to (11, 7), foreground within, background around."""
    values = np.full(size[::-1], 2, dtype=np.uint8)
    values[2:7, 5:11] = 3
    values[3:6, 6:10] = 1
    file = base / "annotations" / "trimaps" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)
    return file
