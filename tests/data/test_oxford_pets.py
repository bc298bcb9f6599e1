"""Oxford-IIIT Pet from its published layout."""

import json
import re

import numpy as np
import polars as pl
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet
from typer.testing import CliRunner

from l2r2.config import TruthSettings
from l2r2.datasets import load_dataset
from l2r2.datasets.oxford_pets import from_oxford_pets
from l2r2.errors import DatasetError
from l2r2.images import read
from l2r2.localization.truth import TruthLocalizer
from tests.data.layouts_a import PETS, SIZE, commands, draw, oxford_pets, trimap

BOX = ["box_x0", "box_y0", "box_x1", "box_y1"]


@pytest.fixture
def root(tmp_path):
    return oxford_pets(tmp_path / "pets")


@pytest.fixture
def base(root):
    return root / "oxford-iiit-pet"


def refused(message, root, out):
    with pytest.raises(DatasetError, match=rf"^{message}$"):
        from_oxford_pets(root, out)
    assert not (out / "dataset.json").exists()


def test_the_published_lists_and_val_held_out_of_trainval(tmp_path, root):
    """Of 9 groups two are given, one to each split; 0.88 of the other 7 is 6.16, so 7 for train and 2 for val."""
    made = from_oxford_pets(root, tmp_path / "out")
    assert made.table.group_by("split").len().sort("split").rows() == [("test", 9), ("train", 21), ("val", 6)]
    assert made.split("val").table["label"].value_counts()["count"].to_list() == [2, 2, 2]
    tests = {path.stem for path in made.split("test").paths()}
    assert tests == {f"{breed}_{i}" for breed in PETS for i in (10, 11, 12)}
    assert load_dataset(tmp_path / "out").digest == made.digest


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_torchvision_reads_the_same(tmp_path, root, split):
    theirs = OxfordIIITPet(root, split=split)
    made = from_oxford_pets(root, tmp_path / "out")
    here = made.table.filter((pl.col("split") == "test") == (split == "test"))
    ours = {path.rpartition("/")[2]: label for path, label in here.select("path", "label").iter_rows()}
    assert {name: label.replace("_", " ").title() for name, label in ours.items()} == {
        image.name: theirs.classes[place] for image, place in zip(theirs._images, _places(theirs), strict=True)
    }


def _places(theirs):
    """torchvision's classes are in the order of their numbers, which here have gaps."""
    numbers = sorted(set(theirs._labels))
    return [numbers.index(number) for number in theirs._labels]


def test_val_is_by_seed(tmp_path, root):
    first = from_oxford_pets(root, tmp_path / "out")
    assert from_oxford_pets(root, tmp_path / "again").digest == first.digest
    assert from_oxford_pets(root, tmp_path / "other", seed=1).digest != first.digest


def test_labels_are_breeds_and_prompts_have_blanks(tmp_path, root):
    made = from_oxford_pets(root, tmp_path / "out")
    assert made.class_names == ("Abyssinian", "Sphynx", "american_bulldog")
    assert made.words("american_bulldog") == "american bulldog"


def test_root_and_notes(tmp_path, root, base):
    made = from_oxford_pets(base, tmp_path / "out", seed=2)
    assert made.card.root == base.resolve()
    assert all(path.is_file() for path in made.paths())
    assert made.card.notes == {"seed": 2, "val_share": 0.12, "left_out_of_train": 0}
    assert set(made.table.columns) == {"path", "label", "split", "group", "digest", "mask", *BOX}


def test_masks_are_foreground_and_border(tmp_path, root):
    made = from_oxford_pets(root, tmp_path / "out")
    expected = np.zeros(SIZE[::-1], dtype=bool)
    expected[2:7, 5:11] = True
    assert made.table.select(BOX).unique().rows() == [(5.0, 2.0, 11.0, 7.0)]
    for photo, row in zip(made.paths(), made.table.iter_rows(named=True), strict=True):
        assert row["mask"] == str((tmp_path / "out" / "masks" / f"{photo.stem}.png").resolve())
        assert np.array_equal(TruthLocalizer(TruthSettings()).locate_known(read(photo), row).mask, expected)


def test_a_trimap_without_foreground(tmp_path, root, base):
    Image.fromarray(np.full(SIZE[::-1], 2, np.uint8)).save(base / "annotations" / "trimaps" / "Sphynx_1.png")
    made = from_oxford_pets(root, tmp_path / "out")
    row = made.table.filter(path="images/Sphynx_1.jpg")
    assert row.select(BOX).row(0) == (None, None, None, None)
    with Image.open(row["mask"][0]) as image:
        assert image.getbbox() is None


def test_masks_are_turned_as_the_photographs_are(tmp_path, root, base):
    """Orientation 6: shown after a quarter turn clockwise."""
    draw(base / "images" / "Sphynx_1.jpg", 0, orientation=6)
    made = from_oxford_pets(root, tmp_path / "out")
    place = made.table["path"].to_list().index("images/Sphynx_1.jpg")
    row = made.table.row(place, named=True)
    region = TruthLocalizer(TruthSettings()).locate_known(read(made.paths()[place]), row)
    width, height = (
        6,
        5,
    )  # of the mask in the stored photograph, 18 high, where it is 2 from the top and 5 from the left
    assert region.box_xyxy_px == (18 - 2 - height, 5, 18 - 2, 5 + width)


def test_comments_and_blank_lines(tmp_path, root, base):
    file = base / "annotations" / "test.txt"
    file.write_text("#Image CLASS-ID SPECIES BREED ID\n\n" + file.read_text())
    assert len(from_oxford_pets(root, tmp_path / "out").split("test")) == 9


def test_a_photograph_of_trainval_and_test_is_left_out_of_train(tmp_path):
    root = oxford_pets(tmp_path / "pets", test=7)
    images = root / "oxford-iiit-pet" / "images"
    (images / "Sphynx_1.jpg").write_bytes((images / "Abyssinian_10.jpg").read_bytes())
    made = from_oxford_pets(root, tmp_path / "out")
    assert made.card.notes["left_out_of_train"] == 1
    assert set(PETS) == set(made.class_names)
    assert "images/Sphynx_1.jpg" not in made.table["path"].to_list()


def test_copies_of_two_breeds_stay_in_train(tmp_path, root, base):
    (base / "images" / "Sphynx_1.jpg").write_bytes((base / "images" / "Abyssinian_1.jpg").read_bytes())
    made = from_oxford_pets(root, tmp_path / "out")
    both = made.table.filter(pl.col("path").is_in(["images/Sphynx_1.jpg", "images/Abyssinian_1.jpg"]))
    assert both["split"].to_list() == ["train", "train"]
    assert both["group"].n_unique() == 1
    masks = [row.rpartition("/")[2] for row in both.sort("path")["mask"]]
    assert masks == ["Abyssinian_1.png", "Sphynx_1.png"]


@pytest.mark.parametrize("folder", ["images", "annotations/trimaps"])
def test_another_root(tmp_path, root, base, folder):
    (base / folder).rename(tmp_path / "away")
    message = (
        f"{base / folder} is no folder; expected {base}/images/*.jpg, {base}/annotations/{{trainval,test}}.txt and "
        f"{base}/annotations/trimaps/*.png"
    )
    refused(re.escape(message), root, tmp_path / "out")


def test_missing_photographs(tmp_path, root, base):
    for name in ("Sphynx_2", "Sphynx_10"):
        (base / "images" / f"{name}.jpg").unlink()
    refused(f"2 of 36 photographs are missing, first {base}/images/Sphynx_2.jpg", root, tmp_path / "out")


def test_missing_trimaps(tmp_path, root, base):
    for name in ("Sphynx_2", "Sphynx_10"):
        (base / "annotations" / "trimaps" / f"{name}.png").unlink()
    message = f"2 of 36 trimaps are missing, first {base}/annotations/trimaps/Sphynx_2.png"
    refused(message, root, tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"Sphynx_1 34 1 34 \xff\n"])
def test_a_list_that_cannot_be_read(tmp_path, root, base, content):
    file = base / "annotations" / "test.txt"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    refused(f"{file} cannot be read: .+; expected one photograph a line", root, tmp_path / "out")


@pytest.mark.parametrize("line", ["Sphynx_10 34 1", "Sphynx 34 1 34", "../Sphynx_10 34 1 34", "Sphynx_10 x 1 34"])
def test_a_line_of_something_else(tmp_path, root, base, line):
    file = base / "annotations" / "test.txt"
    file.write_text(f"Sphynx_10 34 1 34\n{line}\n")
    message = f"{file}, line 2: got {line!r}; expected <breed>_<number> <class> <species> <breed>"
    refused(re.escape(message), root, tmp_path / "out")


def test_a_photograph_in_both_lists(tmp_path, root, base):
    (base / "annotations" / "test.txt").write_text("Sphynx_1 34 1 34\n")
    refused(f"the lists of {base} have Sphynx_1 twice; expected each photograph once", root, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Sphynx_10 1 1 34", "Abyssinian as 1 and Sphynx as 1"),
        ("Sphynx_10 33 1 34", "Sphynx as 33 and Sphynx as 34"),
    ],
)
def test_numbers_that_are_no_breeds(tmp_path, root, base, line, message):
    (base / "annotations" / "test.txt").write_text(f"{line}\n")
    refused(f"the lists of {base} have {message}; expected one number a breed", root, tmp_path / "out")


def test_a_trimap_that_cannot_be_read(tmp_path, root, base):
    file = trimap(base, "Sphynx_1")
    file.write_bytes(file.read_bytes()[:60])
    refused(f"trimap {file} cannot be read: .+; get it again", root, tmp_path / "out")


@pytest.mark.parametrize(("value", "shape"), [(0, SIZE[::-1]), (255, SIZE[::-1]), (4, (*SIZE[::-1], 3))])
def test_a_trimap_of_other_values(tmp_path, root, base, value, shape):
    file = trimap(base, "Sphynx_1")
    Image.fromarray(np.full(shape, value, np.uint8)).save(file)
    message = f"trimap {file} has the value [{value}]; expected one channel of (1, 2, 3)"
    refused(re.escape(message), root, tmp_path / "out")


def test_a_trimap_of_another_shape(tmp_path, root, base):
    trimap(base, "Sphynx_1", size=(18, 24))
    message = f"the mask of {base}/images/Sphynx_1.jpg is 18×24, the photograph 24×18; expected one shape"
    refused(message, root, tmp_path / "out")


def test_the_published_files_are_never_written_over(tmp_path, root, base):
    """Of a folder that is called masks."""
    moved = root.rename(tmp_path / "masks")
    message = f"{moved}/oxford-iiit-pet lies in {moved}, which is written anew; choose another folder for the data set"
    refused(message, moved, tmp_path)
    assert (moved / "oxford-iiit-pet" / "images" / "Sphynx_1.jpg").is_file()


def test_the_command(tmp_path, root):
    result = CliRunner().invoke(commands(), ["pets", str(root), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["splits"] == {"train": 21, "test": 9, "val": 6}
