"""CounterAnimal from its published layout."""

import re
import shutil

import polars as pl
import pytest

from l2r2.datasets import load_dataset
from l2r2.datasets.counter_animal import from_counter_animal
from l2r2.errors import DatasetError
from tests.data.layouts_b import counter_animal, draw

EXPECTED = "<ImageNet index> <class>/{common-*,counter-*}/*"


@pytest.fixture
def root(tmp_path):
    return counter_animal(tmp_path / "counter")


def refused(message, root, out):
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        from_counter_animal(root, out)
    assert not out.exists()


def test_common_and_rare_are_the_test_sets(tmp_path, root):
    made = from_counter_animal(root, tmp_path / "out")
    assert made.test_sets == ("common", "rare")
    assert made.table.group_by("split").len().sort("split").rows() == [("common", 9), ("rare", 9)]
    rare = made.split("rare")
    assert {path.parent.name.partition("-")[0] for path in rare.paths()} == {"counter"}
    assert {path.parent.name.partition("-")[0] for path in made.split("common").paths()} == {"common"}
    assert load_dataset(tmp_path / "out").digest == made.digest


def test_classes_are_in_the_order_of_their_imagenet_indices(tmp_path, root):
    made = from_counter_animal(root, tmp_path / "out")
    assert made.class_names == ("ostrich", "black grouse", "echidna")
    assert made.words("black grouse") == "black grouse"
    first = made.table.row(0, named=True)
    assert first["path"] == "9 ostrich/common-ground/0.jpg"
    assert set(made.table["imagenet_index"]) == {9, 80, 102}


def test_the_background_is_noted_and_is_no_metadata(tmp_path, root):
    made = from_counter_animal(root, tmp_path / "out")
    echidna = made.table.filter(pl.col("label") == "echidna").group_by("split").agg(pl.col("background").unique())
    assert dict(echidna.iter_rows()) == {"common": ["tree"], "rare": ["grass and sky"]}
    assert made.card.metadata == ()


def test_the_root_may_be_the_inner_folder(tmp_path, root):
    inner = from_counter_animal(root / "LAION-final", tmp_path / "inner")
    assert inner.digest == from_counter_animal(root, tmp_path / "out").digest
    assert inner.card.root == root / "LAION-final"


def test_a_copy_in_the_other_test_set_is_kept(tmp_path, root):
    base = root / "LAION-final" / "9 ostrich"
    shutil.copy(base / "common-ground" / "0.jpg", base / "counter-water" / "copy.jpg")
    made = from_counter_animal(root, tmp_path / "out")
    assert len(made) == 19
    assert made.table["digest"].n_unique() == 18


def test_other_files_and_hidden_folders_are_left_out(tmp_path, root):
    (root / "LAION-final" / "__MACOSX").mkdir()
    (root / "LAION-final" / "9 ostrich" / ".cache").mkdir()
    (root / "LAION-final" / "9 ostrich" / "common-ground" / "list.txt").write_text("x")
    draw(root / "LAION-final" / "9 ostrich" / "loose.jpg", 77)
    assert len(from_counter_animal(root, tmp_path / "out")) == 18


def test_no_folder(tmp_path):
    place = tmp_path / "none"
    refused(f"{place} is no folder; expected {place}/{EXPECTED}", place, tmp_path / "out")


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    place = tmp_path / "empty"
    refused(f"no class folders in {place}; expected {place}/{EXPECTED}", place, tmp_path / "out")


@pytest.mark.parametrize("name", ["ostrich", "1000 whale", "7", "n01518878"])
def test_a_folder_that_is_no_class(tmp_path, root, name):
    base = root / "LAION-final"
    (base / name).mkdir()
    message = f"{base / name} is not named by an ImageNet index (0 to 999) and a class; expected {base}/{EXPECTED}"
    refused(message, root, tmp_path / "out")


def test_two_classes_of_one_index(tmp_path, root):
    base = root / "LAION-final"
    shutil.copytree(base / "9 ostrich", base / "9 rhea")
    message = f"{base / '9 ostrich'} and {base / '9 rhea'} have one ImageNet index; expected each once"
    refused(message, root, tmp_path / "out")


def test_two_classes_of_one_name(tmp_path, root):
    base = root / "LAION-final"
    shutil.copytree(base / "9 ostrich", base / "10 ostrich")
    refused("the card has 4 classes, 3 distinct; expected two or more, once each", root, tmp_path / "out")


def test_a_folder_that_is_neither_common_nor_counter(tmp_path, root):
    base = root / "LAION-final"
    draw(base / "9 ostrich" / "usual-ground" / "0.jpg", 1)
    message = f"{base / '9 ostrich/usual-ground'} is neither common-… nor counter-…; expected {base}/{EXPECTED}"
    refused(message, root, tmp_path / "out")


@pytest.mark.parametrize(("split", "name"), [("common", "common"), ("rare", "counter")])
def test_classes_without_photographs(tmp_path, root, split, name):
    base = root / "LAION-final"
    for animal in ("102 echidna", "80 black grouse"):
        shutil.rmtree(next((base / animal).glob(f"{name}-*")))
    message = f"2 of 3 classes have no {split} photographs under {base}, first black grouse; expected {base}/{EXPECTED}"
    refused(message, root, tmp_path / "out")
