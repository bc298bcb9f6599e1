"""Stanford Dogs from its published layout."""

import json
import re

import polars as pl
import pytest
import scipy.io
from typer.testing import CliRunner

from l2r2.datasets import load_dataset
from l2r2.datasets.stanford_dogs import from_stanford_dogs
from l2r2.errors import DatasetError
from tests.data.layouts_a import BREEDS, annotate, commands, stanford_dogs, write_list

CHIHUAHUA, TERRIER, DINGO = BREEDS
BOX = ["box_x0", "box_y0", "box_x1", "box_y1"]


@pytest.fixture
def root(tmp_path):
    return stanford_dogs(tmp_path / "dogs")


def refused(message, root, out):
    with pytest.raises(DatasetError, match=rf"^{message}$"):
        from_stanford_dogs(root, out)
    assert not out.exists()


def entries(folder, *numbers):
    return [f"{folder}/{folder.partition('-')[0]}_{100 + i}.jpg" for i in numbers]


def test_the_published_lists_and_val_held_out_of_train(tmp_path, root):
    """Of 9 groups two are given, one to each split; 0.88 of the other 7 is 6.16, so 7 for train and 2 for val."""
    made = from_stanford_dogs(root, tmp_path / "out")
    assert made.table.group_by("split").len().sort("split").rows() == [("test", 9), ("train", 21), ("val", 6)]
    assert made.split("val").table["label"].value_counts()["count"].to_list() == [2, 2, 2]
    assert sorted(made.split("test").table["path"]) == sorted(
        f"Images/{entry}" for folder in BREEDS for entry in entries(folder, 9, 10, 11)
    )
    assert load_dataset(tmp_path / "out").digest == made.digest


def test_val_is_by_seed(tmp_path, root):
    first = from_stanford_dogs(root, tmp_path / "out")
    assert from_stanford_dogs(root, tmp_path / "again").digest == first.digest
    assert from_stanford_dogs(root, tmp_path / "other", seed=1).digest != first.digest


def test_labels_are_breeds_and_prompts_have_blanks(tmp_path, root):
    made = from_stanford_dogs(root, tmp_path / "out")
    assert made.class_names == ("Chihuahua", "dingo", "soft-coated_wheaten_terrier")
    assert made.words("soft-coated_wheaten_terrier") == "soft-coated wheaten terrier"
    folders = {path.parent.name.partition("-")[2] for path in made.paths()}
    assert all(
        path.parent.name.endswith(f"-{row}") for path, row in zip(made.paths(), made.table["label"], strict=True)
    )
    assert folders == set(made.class_names)


def test_root_and_notes(tmp_path, root):
    made = from_stanford_dogs(root, tmp_path / "out", seed=2)
    assert made.card.root == root.resolve()
    assert all(path.is_file() for path in made.paths())
    assert made.card.notes == {"seed": 2, "val_share": 0.12, "left_out_of_train": 0}
    assert set(made.table.columns) == {"path", "label", "split", "group", "digest", *BOX}


def test_the_box_is_around_all_dogs(tmp_path, root):
    entry = f"{DINGO}/n02115641_100"
    annotate(root, entry, (5, 4, 9, 8), (3, 6, 7, 12), (8, 5, 14, 7))
    made = from_stanford_dogs(root, tmp_path / "out")
    boxes = made.table.select("path", *BOX)
    assert boxes.filter(path=f"Images/{entry}.jpg").row(0)[1:] == (3.0, 4.0, 14.0, 12.0)
    assert boxes.filter(pl.col("path") != f"Images/{entry}.jpg").select(BOX).unique().rows() == [(2.0, 1.0, 15.0, 10.0)]


def copy(root, source, target):
    (root / "Images" / target).write_bytes((root / "Images" / source).read_bytes())


def test_a_photograph_of_train_and_test_is_left_out_of_train(tmp_path):
    root = stanford_dogs(tmp_path / "dogs", test=7)
    train, test = *entries(DINGO, 0), *entries(DINGO, 10)
    copy(root, test, train)
    made = from_stanford_dogs(root, tmp_path / "out")
    assert made.card.notes["left_out_of_train"] == 1
    assert f"Images/{train}" not in made.table["path"].to_list()
    assert f"Images/{test}" in made.table["path"].to_list()


def test_many_photographs_of_train_and_test(tmp_path, root):
    copy(root, *entries(DINGO, 10, 0))
    with pytest.raises(DatasetError, match=r"^1 of 9 test photographs are in train too; expected at most 5%"):
        from_stanford_dogs(root, tmp_path / "out")


def test_copies_within_train_stay_together(tmp_path, root):
    for i in range(1, 6):
        copy(root, *entries(DINGO, 0, i))
    made = from_stanford_dogs(root, tmp_path / "out")
    copies = made.table.filter(pl.col("path").is_in([f"Images/{entry}" for entry in entries(DINGO, *range(6))]))
    assert copies["split"].n_unique() == 1
    assert len(copies) == 6


@pytest.mark.parametrize("folder", ["Images", "Annotation"])
def test_another_root(tmp_path, root, folder):
    (root / folder).rename(tmp_path / "away")
    message = (
        f"{root / folder} is no folder; expected {root}/Images/<wnid-breed>/*.jpg, {root}/Annotation/<wnid-breed>/* "
        f"and {root}/{{train,test}}_list.mat"
    )
    refused(re.escape(message), root, tmp_path / "out")


def test_missing_photographs(tmp_path, root):
    for entry in entries(DINGO, 1, 4):
        (root / "Images" / entry).unlink()
    first = root / "Images" / entries(DINGO, 1)[0]
    refused(f"2 of 36 photographs are missing, first {first}", root, tmp_path / "out")


def test_missing_annotations(tmp_path, root):
    for i in (100, 104, 111):
        (root / "Annotation" / DINGO / f"n02115641_{i}").unlink()
    first = root / "Annotation" / DINGO / "n02115641_100"
    refused(f"3 of 36 annotations are missing, first {first}", root, tmp_path / "out")


MATS = {"empty": b"", "text": b"file_list\n" * 100, "missing": None}


@pytest.mark.parametrize("name", MATS)
def test_a_list_that_cannot_be_read(tmp_path, root, name):
    file = root / "test_list.mat"
    file.unlink()
    if MATS[name] is not None:
        file.write_bytes(MATS[name])
    refused(f"{file} cannot be read: .+; expected a MAT file with file_list and labels", root, tmp_path / "out")


def test_a_truncated_list(tmp_path, root):
    file = root / "train_list.mat"
    file.write_bytes(file.read_bytes()[:400])
    refused(f"{file} cannot be read: .+; expected a MAT file with file_list and labels", root, tmp_path / "out")


def test_a_list_without_labels(tmp_path, root):
    file = root / "test_list.mat"
    scipy.io.savemat(file, {"file_list": scipy.io.loadmat(file)["file_list"]})
    message = f"{file} cannot be read: 'labels'; expected a MAT file with file_list and labels"
    refused(message, root, tmp_path / "out")


def test_a_list_of_unequal_columns(tmp_path, root):
    file = root / "test_list.mat"
    contents = scipy.io.loadmat(file)
    scipy.io.savemat(file, {"file_list": contents["file_list"], "labels": contents["labels"][:-1]})
    refused(f"{file} has 9 files and 8 labels; expected as many", root, tmp_path / "out")


@pytest.mark.parametrize("entry", ["../../secret.jpg", "n02115641/n02115641_1.jpg", "dingo.jpg"])
def test_a_list_of_something_else(tmp_path, root, entry):
    file = write_list(root / "test_list.mat", [(entry, 1)])
    refused(re.escape(f"{file} lists {entry!r}; expected <wnid>-<breed>/<name>.jpg"), root, tmp_path / "out")


def test_a_list_of_one(tmp_path, root):
    write_list(root / "test_list.mat", [(entries(DINGO, 9)[0], 3)])
    assert len(from_stanford_dogs(root, tmp_path / "out").split("test")) == 1


def test_a_photograph_in_both_lists(tmp_path, root):
    (entry,) = entries(DINGO, 0)
    write_list(root / "test_list.mat", [(entry, 3)])
    refused(f"the lists of {root} have {entry} twice; expected each photograph once", root, tmp_path / "out")


@pytest.mark.parametrize(
    ("entry", "number", "message"),
    [
        (entries(DINGO, 9)[0], 2, f"{DINGO} as 2 and {DINGO} as 3"),
        ("n02115913-dhole/n02115913_1.jpg", 3, f"{DINGO} as 3 and n02115913-dhole as 3"),
        ("n02115913-dingo/n02115913_1.jpg", 4, f"{DINGO} as 3 and n02115913-dingo as 4"),
    ],
)
def test_numbers_that_are_no_breeds(tmp_path, root, entry, number, message):
    write_list(root / "test_list.mat", [(entry, number)])
    refused(f"the lists of {root} have {message}; expected one number a breed", root, tmp_path / "out")


@pytest.mark.parametrize("content", ["", "<annotation>", "<a><object><bndbox><xmin>1</xmin></bndbox></object></a>"])
def test_an_annotation_that_cannot_be_read(tmp_path, root, content):
    file = root / "Annotation" / DINGO / "n02115641_100"
    file.write_text(content)
    message = f"{file} cannot be read: .+; expected VOC XML with xmin, ymin, xmax, ymax of each object"
    refused(message, root, tmp_path / "out")


def test_an_annotation_without_a_dog(tmp_path, root):
    file = annotate(root, f"{DINGO}/n02115641_100")
    refused(f"{file} has no object with a bndbox; expected one at least", root, tmp_path / "out")


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 9, 8, 4), ("nan", 1, 8, 9)])
def test_an_empty_box(tmp_path, root, box):
    file = annotate(root, f"{DINGO}/n02115641_100", box)
    refused(rf"{file} has the box \(.+\); expected xmin < xmax and ymin < ymax", root, tmp_path / "out")


def test_entities_are_not_let_grow(tmp_path, root):
    """Ten to the power of nine characters, from a file of a few hundred bytes."""
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    file = root / "Annotation" / DINGO / "n02115641_100"
    file.write_text(f'<!DOCTYPE a [<!ENTITY l0 "x">{levels}]><a><object><bndbox>&l9;</bndbox></object></a>')
    refused(f"{file} cannot be read: limit on input amplification .+; expected VOC XML .+", root, tmp_path / "out")


def test_the_command(tmp_path, root):
    result = CliRunner().invoke(commands(), ["dogs", str(root), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["splits"] == {"train": 21, "test": 9, "val": 6}
