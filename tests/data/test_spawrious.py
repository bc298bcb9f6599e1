"""Spawrious O2O-easy from its published layout."""

import re
import shutil
from collections import Counter

import polars as pl
import pytest
from typer.testing import CliRunner

from l2r2.datasets import load_dataset
from l2r2.datasets.spawrious import AT_HOME, AWAY, HOME, PER_CELL, from_spawrious
from l2r2.errors import DatasetError
from tests.data.layouts_a import commands, draw, spawrious

CELL = 33
"""Photographs of a class in one scene of one environment. 3072, 2756 and 3168 of 3168 are 32, 28 and 33 of 33."""

SCENES = {"bulldog": ("desert", "dirt"), "dachshund": ("jungle", "snow"), "labrador": ("dirt", "desert")}
SCENES |= {"corgi": ("snow", "jungle")}
"""Class → scene of train, scene of test. Source: Lynch et al. 2023, table 2."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return spawrious(tmp_path_factory.mktemp("published"), CELL)


@pytest.fixture
def own(root, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(root, tmp_path / "own")


def refused(message, root, out, variant="100", per_cell=CELL):
    with pytest.raises(DatasetError, match=rf"^{message}$"):
        from_spawrious(root, out, variant=variant, per_cell=per_cell)
    assert not out.exists()


def cells(made, *splits):
    rows = made.table.filter(pl.col("split").is_in(splits))
    return Counter(rows.select("environment", "location", "label").iter_rows())


def test_the_published_cuts():
    """97, 87 and 100 % of 3168, rounded down."""
    assert PER_CELL == 3168
    assert AT_HOME == {"97": {"0": 3072, "1": 2756}, "100": {"0": 3168}}
    assert {label: (HOME[label], AWAY[label]) for label in HOME} == SCENES


def test_all_at_home(tmp_path, root):
    made = from_spawrious(root, tmp_path / "out", variant="100", per_cell=CELL)
    assert cells(made, "train", "val") == {("0", scene, label): CELL for label, (scene, _) in SCENES.items()}
    assert made.class_names == ("bulldog", "corgi", "dachshund", "labrador")
    assert made.card.name == "spawrious-100"
    assert load_dataset(tmp_path / "out").digest == made.digest


def test_nearly_all_at_home_in_two_environments(tmp_path, root):
    made = from_spawrious(root, tmp_path / "out", variant="97", per_cell=CELL)
    expected = {}
    for label, (scene, _) in SCENES.items():
        expected |= {("0", scene, label): 32, ("0", "beach", label): 1}
        expected |= {("1", scene, label): 28, ("1", "beach", label): 5}
    assert cells(made, "train", "val") == expected


@pytest.mark.parametrize("variant", ["97", "100"])
def test_the_test_set_is_elsewhere_in_both_environments(tmp_path, root, variant):
    made = from_spawrious(root, tmp_path / "out", variant=variant, per_cell=CELL)
    away = {label: scene for label, (_, scene) in SCENES.items()}
    assert made.test_sets == ("test",)
    assert cells(made, "test") == {(e, scene, label): CELL for e in "01" for label, scene in away.items()}


def test_a_tenth_is_held_out(tmp_path, root):
    """Of 33 groups two are given, one to each split; 0.9 of the other 31 is 27.9, so 29 for train and 4 for val."""
    made = from_spawrious(root, tmp_path / "out", variant="100", per_cell=CELL)
    sizes = made.table.group_by("split", "label").len().filter(pl.col("split") == "val")
    assert sizes["len"].to_list() == [4] * 4
    assert from_spawrious(root, tmp_path / "again", variant="100", per_cell=CELL).digest == made.digest
    assert from_spawrious(root, tmp_path / "other", variant="100", per_cell=CELL, seed=1).digest != made.digest


def test_the_first_names_are_taken(tmp_path, root):
    """In alphabetical order, as the sorted names of the folder have it: 10 is before 2."""
    made = from_spawrious(root, tmp_path / "out", variant="97", per_cell=CELL)
    taken = made.table.filter(environment="1", location="beach", label="corgi")["path"].sort().to_list()
    assert taken == [f"1/beach/corgi/corgi_beach_{i}.png" for i in (0, 1, 10, 11, 12)]


def test_paths_columns_and_notes(tmp_path, root):
    made = from_spawrious(root / "spawrious224", tmp_path / "out", variant="100", per_cell=CELL, seed=3)
    assert made.card.root == (root / "spawrious224").resolve()
    assert all(path.is_file() for path in made.paths())
    assert made.card.metadata == ()
    assert set(made.table.columns) == {"path", "label", "split", "group", "digest", "environment", "location"}
    assert made.groups().tolist() == made.table["digest"].to_list()
    notes = {"variant": "100", "per_cell": CELL, "seed": 3, "val_share": 0.1, "left_out_of_train": 0}
    assert made.card.notes == notes


def test_a_photograph_of_train_and_test_is_left_out_of_train(tmp_path, own):
    base = own / "spawrious224" / "0"
    copy = base / "desert" / "bulldog" / "bulldog_desert_0.png"
    copy.write_bytes((base / "snow" / "dachshund" / "dachshund_snow_0.png").read_bytes())
    made = from_spawrious(own, tmp_path / "out", variant="100", per_cell=CELL)
    assert made.card.notes["left_out_of_train"] == 1
    assert "0/desert/bulldog/bulldog_desert_0.png" not in made.table["path"].to_list()


def test_another_root(tmp_path):
    folder = tmp_path / "0" / "desert" / "bulldog"
    message = f"{folder} is no folder; expected {tmp_path}/{{0,1}}/<scene>/<class>/*.png of Spawrious"
    refused(re.escape(message), tmp_path, tmp_path / "out")


@pytest.mark.parametrize("place", ["0/snow/corgi", "0/beach/labrador", "1/jungle/dachshund", "1/dirt/bulldog"])
def test_a_missing_folder(tmp_path, own, place):
    base = own / "spawrious224"
    shutil.rmtree(base / place)
    message = f"{base / place} is no folder; expected {base}/{{0,1}}/<scene>/<class>/*.png of Spawrious"
    refused(re.escape(message), own, tmp_path / "out", variant="97")


@pytest.mark.parametrize(
    ("place", "left", "expected"), [("0/snow/corgi", 31, 32), ("1/beach/corgi", 4, 5), ("1/jungle/corgi", 32, 33)]
)
def test_a_folder_with_too_few(tmp_path, own, place, left, expected):
    base = own / "spawrious224"
    for path in sorted((base / place).iterdir())[left:]:
        path.unlink()
    message = f"{base / place} has {left} photographs; expected at least {expected}, get it again"
    refused(message, own, tmp_path / "out", variant="97")


def test_a_filler_folder_needs_no_more_than_the_filler(tmp_path, own):
    for path in sorted((own / "spawrious224" / "1" / "beach" / "corgi").iterdir())[5:]:
        path.unlink()
    made = from_spawrious(own, tmp_path / "out", variant="97", per_cell=CELL)
    assert len(made.table.filter(environment="1", location="beach")) == 20


def test_other_files_are_left_out(tmp_path, own):
    cell = own / "spawrious224" / "0" / "snow" / "dachshund"
    (cell / "Thumbs.db").write_bytes(b"x")
    draw(cell / "extra.png", 10**6, (4, 4))
    made = from_spawrious(own, tmp_path / "out", variant="100", per_cell=CELL)
    assert cells(made, "test")["0", "snow", "dachshund"] == CELL + 1


def test_the_published_sizes_are_the_default(tmp_path, root):
    folder = root / "spawrious224" / "0" / "desert" / "bulldog"
    with pytest.raises(DatasetError, match=rf"^{folder} has 33 photographs; expected at least 3168, get it again$"):
        from_spawrious(root, tmp_path / "out", variant="100")


def test_an_unknown_variant(tmp_path, root):
    refused("variant is '87'; expected one of 97, 100", root, tmp_path / "out", variant="87")


def test_an_empty_cut(tmp_path, root):
    refused("per_cell is 0; expected at least 1", root, tmp_path / "out", per_cell=0)


def test_the_command(tmp_path, root):
    arguments = ["spawrious", str(root), "--variant", "97", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(commands(), arguments)
    assert isinstance(result.exception, DatasetError)
    assert "has 33 photographs; expected at least 3072" in str(result.exception)
