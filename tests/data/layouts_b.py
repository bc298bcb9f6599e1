"""Miniatures of published layouts, with real files: ImageNet-1k and its clean labels, Hard ImageNet, CounterAnimal."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

TENCH, BIRD, MACHINE = "n01440764", "n02012849", "n03126707"
"""ImageNet indices 0, 134 and 517; the last two are both "crane"."""

INDICES = {TENCH: 0, BIRD: 134, MACHINE: 517}

SKI, SNORKEL, BALL = "n04228054", "n04251144", "n04540053"
"""Three classes of Hard ImageNet; indices 795, 801 and 890."""

SIZE = (24, 20)
"""Width and height of a photograph."""


def draw(path: Path, seed: int, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """A photograph of noise, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return path


def imagenet(root: Path, wnids=tuple(INDICES), train: int = 12, val: int = 10) -> Path:
    """`root/{train,val}/<wnid>/*.JPEG`; validation photographs are numbered through all classes, as published."""
    for k, wnid in enumerate(wnids):
        for i in range(train):
            draw(root / "train" / wnid / f"{wnid}_{i}.JPEG", 1000 * k + i)
        for i in range(val):
            draw(root / "val" / wnid / f"{val_name(k * val + i)}.JPEG", 1000 * k + 500 + i)
    return root


def val_name(number: int) -> str:
    """The stem of a validation photograph, counted from 0."""
    return f"ILSVRC2012_val_{number + 1:08d}"


CLEAN = (
    ("ILSVRC2012_val_00000001.JPEG", "0", "0", "*"),
    ("ILSVRC2012_val_00000002", "0", "0", "+"),
    ("ILSVRC2012_val_00000003.JPEG", "0", '"134, 0"', "+"),
    ("ILSVRC2012_val_00000004.JPEG", "0", "134", "+"),
    ("ILSVRC2012_val_00000005.JPEG", "0", "", "+"),
    ("ILSVRC2012_val_00000011.JPEG", "134", "134", "*"),
    ("ILSVRC2012_val_00000012.JPEG", "134", "999", "+"),
    ("ILSVRC2012_val_00049999.JPEG", "999", "999", "*"),
)
"""Rows of `clean_validation.csv`. Of the miniature's photographs, numbers 1, 2 and 11 have their original label alone,
4 has another alone, 12 one that the miniature lacks; the last row is of a class that the miniature lacks."""


def clean_labels(file: Path, rows=CLEAN, header: str = "id,original_label,proposed_labels,validation") -> Path:
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return file


def hard_imagenet(root: Path, *, meta: bool = True) -> tuple[Path, Path]:
    """ImageNet with four classes, three of them with masks: `masks/{train,val}/<wnid>_<name>`, and the pickles.

    Masks are JPEGs, white left and grey (90) right of the middle, in the size of the photograph.
    """
    photos = imagenet(root / "imagenet", (TENCH, SKI, SNORKEL, BALL))
    masks = root / "hard"
    for folder in ("train", "val"):
        for wnid in (SKI, SNORKEL, BALL):
            for photo in sorted((photos / folder / wnid).iterdir()):
                draw_mask(masks / folder / f"{wnid}_{photo.name}", halves(255, 90))
    if meta:
        (masks / "meta").mkdir()
        dump(masks / "meta" / "idx_to_wnid.pkl", {0: TENCH, 795: SKI, 801: SNORKEL, 890: BALL})
        dump(masks / "meta" / "hard_imagenet_idx.pkl", [795, 801, 890])
    return photos, masks


def halves(left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey levels of a mask, HW."""
    grey = np.full((size[1], size[0]), right, np.uint8)
    grey[:, : size[0] // 2] = left
    return grey


def draw_mask(path: Path, grey: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path)
    return path


def dump(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def shifted(root: Path, seed: int, names=("ski", "Snorkel", BALL), photos: int = 2) -> Path:
    """A test set of class folders, with a mask of the first photograph of each class in `<root>_masks`."""
    for k, name in enumerate(names):
        for i in range(photos):
            draw(root / name / f"{i}.jpg", seed + 10 * k + i)
        draw_mask(root.with_name(root.name + "_masks") / name / "0.png", halves(255, 0))
    return root


ANIMALS = {
    "80 black grouse": ("common-grass", "counter-snow"),
    "9 ostrich": ("common-ground", "counter-water"),
    "102 echidna": ("common-tree", "counter-grass and sky"),
}
"""Class folder of CounterAnimal → its two backgrounds."""


def counter_animal(root: Path, photos: int = 3) -> Path:
    """`root/LAION-final/<index> <class>/{common-*,counter-*}/*` and a list beside the folders, as published."""
    for k, (name, places) in enumerate(ANIMALS.items()):
        for j, place in enumerate(places):
            for i in range(photos):
                draw(root / "LAION-final" / name / place / f"{i}.jpg", 100 * k + 10 * j + i)
    (root / "LAION-final" / "imagenet_names.txt").write_text("9\tostrich\n")
    return root
