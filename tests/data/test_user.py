"""A user's photographs: class folders with and without splits, tables as CSV and Parquet."""

import re

import numpy as np
import polars as pl
import pytest
from PIL import Image

from l2r2.datasets.user import from_folder, from_table
from l2r2.errors import DatasetError


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes of eight photographs, no splits."""
    for i in range(16):
        draw(tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png", i)
    return tmp_path / "photos"


def refused(message, make, *arguments, **options):
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        make(*arguments, **options)


def test_class_folders(tmp_path, photos):
    made = from_folder(photos, tmp_path / "out")
    assert made.class_names == ("a", "b")
    assert len(made) == 16
    assert {path.parent.name for path in made.paths()} == {"a", "b"}
    assert made.card.root == photos
    assert made.card.name == "photos"


def test_class_folders_are_split_by_seed(tmp_path, photos):
    made = from_folder(photos, tmp_path / "out")
    # each class has 8 groups; one is given to each split, the other 5 go by share: 3.5 → 4, 4.25 → 4, 5
    assert made.table.group_by("split").len().sort("split").rows() == [("test", 4), ("train", 10), ("val", 2)]
    assert from_folder(photos, tmp_path / "again").digest == made.digest
    assert from_folder(photos, tmp_path / "other", seed=1).digest != made.digest


def test_other_files_are_left_out(tmp_path, photos):
    (photos / "a" / "notes.txt").write_text("x")
    draw(photos / "loose.png", 99)
    assert len(from_folder(photos, tmp_path / "out")) == 16


def test_suffixes_in_capitals(tmp_path, photos):
    (photos / "a" / "00.png").rename(photos / "a" / "00.PNG")
    assert len(from_folder(photos, tmp_path / "out")) == 16


def test_copies_of_one_photograph_stay_together(tmp_path, photos):
    for i in range(1, 6):
        (photos / "a" / f"copy {i}.png").write_bytes((photos / "a" / "00.png").read_bytes())
    made = from_folder(photos, tmp_path / "out")
    copies = made.table.filter(pl.col("path").str.contains("copy|00"))
    assert len(copies) == 6
    assert copies["split"].n_unique() == 1


def test_one_photograph_in_two_classes(tmp_path, photos):
    (photos / "b" / "copy.png").write_bytes((photos / "a" / "00.png").read_bytes())
    with pytest.raises(DatasetError, match=r"^group '[0-9a-f]{64}' has several labels; give the splits yourself"):
        from_folder(photos, tmp_path / "out")


def test_ready_splits(tmp_path):
    for i, (split, label) in enumerate((s, c) for s in ("train", "val", "iid") for c in "ab"):
        draw(tmp_path / "photos" / split / label / "0.png", i)
    made = from_folder(tmp_path / "photos", tmp_path / "out")
    assert made.test_sets == ("iid",)
    assert made.split("iid").table["path"].to_list() == ["iid/a/0.png", "iid/b/0.png"]


def test_ready_splits_are_not_made_up(tmp_path):
    for i, label in enumerate("ab"):
        draw(tmp_path / "photos" / "train" / label / "0.png", i)
    refused("there is no split 'val'; got train", from_folder, tmp_path / "photos", tmp_path / "out")


def test_a_photograph_in_two_ready_splits(tmp_path):
    for i, (split, label) in enumerate((s, c) for s in ("train", "val") for c in "ab"):
        draw(tmp_path / "photos" / split / label / "0.png", i)
    draw(tmp_path / "photos" / "val" / "a" / "0.png", 0)
    with pytest.raises(DatasetError, match=r"^group '[0-9a-f]{64}' is in train and val; a group must stay in one"):
        from_folder(tmp_path / "photos", tmp_path / "out")


def test_no_folder(tmp_path):
    message = f"{tmp_path / 'none'} is no folder; expected one folder of photographs a class"
    refused(message, from_folder, tmp_path / "none", tmp_path / "out")


@pytest.mark.parametrize("inner", ["", "train/"])
def test_an_empty_folder(tmp_path, inner):
    source = tmp_path / "photos"
    (source / inner / "a").mkdir(parents=True)
    message = f"no photographs under {source}; expected {source}/{inner}<class>/*.jpg"
    refused(message, from_folder, source, tmp_path / "out")


def frame_of(photos):
    paths = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    return pl.DataFrame({"path": paths, "label": [p[0] for p in paths]})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table(tmp_path, photos, suffix):
    frame = frame_of(photos).with_columns(
        month=pl.Series([5, None] * 8), habitat=pl.lit("shore"), box_x0=pl.lit("1"), split=pl.lit("train")
    )
    frame = frame.with_columns(split=pl.Series(["train"] * 6 + ["val", "test"] + ["train"] * 6 + ["val", "test"]))
    file = photos / f"table.{suffix}"
    frame.write_csv(file) if suffix == "csv" else frame.write_parquet(file)
    made = from_table(file, tmp_path / "out")
    assert made.card.metadata == ("month", "habitat")
    assert made.metadata()[:2] == [{"month": "5", "habitat": "shore"}, {"habitat": "shore"}]
    assert made.test_sets == ("test",)
    assert made.groups().tolist() == frame["path"].to_list()


def test_csv_and_parquet_give_the_same_data_set(tmp_path, photos):
    frame = frame_of(photos).with_columns(month=pl.Series([5, None] * 8), split=pl.Series(["train", "val"] * 8))
    frame.write_csv(photos / "a.csv")
    frame.write_parquet(photos / "a.parquet")
    digests = {from_table(photos / f"a.{suffix}", tmp_path / suffix).digest for suffix in ("csv", "parquet")}
    assert len(digests) == 1


def test_a_table_without_splits_keeps_groups_whole(tmp_path, photos):
    frame = frame_of(photos).with_columns(group=pl.Series([f"g{i // 2}" for i in range(16)]))
    frame.write_csv(photos / "table.csv")
    made = from_table(photos / "table.csv", tmp_path / "out", seed=3)
    assert made.test_sets == ("test",)
    assert made.table.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 8


def test_a_table_without_splits_needs_every_label(tmp_path, photos):
    frame_of(photos).with_columns(label=pl.Series([None, *"b" * 15])).write_csv(photos / "table.csv")
    message = f"{photos / 'table.csv'}: 1 rows have no label and there is no split column"
    refused(message, from_table, photos / "table.csv", tmp_path / "out")


def test_a_digest_of_the_user_is_not_believed(tmp_path, photos):
    frame = frame_of(photos).with_columns(digest=pl.lit("same"), split=pl.Series(["train", "val"] * 8))
    frame.write_csv(photos / "table.csv")
    assert from_table(photos / "table.csv", tmp_path / "out").table["digest"].n_unique() == 16


@pytest.mark.parametrize("allow", [False, True])
def test_a_copy_in_another_split(tmp_path, photos, allow):
    frame = frame_of(photos).with_columns(split=pl.Series(["train", "val"] * 8))
    (photos / frame["path"][1]).write_bytes((photos / frame["path"][0]).read_bytes())
    frame.write_csv(photos / "table.csv")
    if allow:
        assert len(from_table(photos / "table.csv", tmp_path / "out", allow_duplicates=True)) == 16
        return
    with pytest.raises(DatasetError, match=r"^a/00\.png and a/02\.png are the same photograph, in train and val; "):
        from_table(photos / "table.csv", tmp_path / "out")


@pytest.mark.parametrize("column", ["path", "label"])
def test_a_table_that_lacks_a_column(tmp_path, photos, column):
    frame_of(photos).drop(column).write_csv(photos / "table.csv")
    left = {"path": "label", "label": "path"}[column]
    message = f"{photos / 'table.csv'} lacks column '{column}'; it has {left}"
    refused(message, from_table, photos / "table.csv", tmp_path / "out")


UNREADABLE = {
    "empty.csv": b"",
    "latin1.csv": "path,label\ngrün.png,a\n".encode("latin1"),
    "ragged.csv": b"path,label\na.png,a,b,c\n",
    "no.parquet": b"path,label\n",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_table_that_cannot_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(UNREADABLE[name])
    place = re.escape(str(tmp_path / name))
    with pytest.raises(DatasetError, match=rf"^{place} cannot be read: .+; expected CSV or Parquet$"):
        from_table(tmp_path / name, tmp_path / "out")


def test_no_table(tmp_path):
    place = re.escape(str(tmp_path / "none.csv"))
    with pytest.raises(DatasetError, match=rf"^{place} cannot be read: No such file .*; expected CSV or Parquet$"):
        from_table(tmp_path / "none.csv", tmp_path / "out")


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot be read: .+; expected CSV or Parquet$"):
        from_table(tmp_path, tmp_path / "out")
