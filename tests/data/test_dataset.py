"""The rules of the one table, each with its message."""

import re

import numpy as np
import polars as pl
import pytest

from l2r2.datasets import Card, load_dataset
from l2r2.datasets.dataset import CARD, TABLE, make_dataset
from l2r2.errors import DatasetError
from l2r2.files import sha256

ROWS = (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b"), ("test", "a"), ("test", "b"))


@pytest.fixture
def table(tmp_path):
    """Six photographs, each a file of its own bytes; two classes in train, val and test."""
    for i in range(len(ROWS)):
        (tmp_path / f"{i}.png").write_bytes(bytes([i]))
    return pl.DataFrame(
        {
            "path": [f"{i}.png" for i in range(len(ROWS))],
            "label": [label for _, label in ROWS],
            "split": [split for split, _ in ROWS],
        }
    )


def changed(table, row, **values):
    """The table with some cells of one row replaced."""
    rows = table.to_dicts()
    rows[row] |= values
    return pl.DataFrame(rows, infer_schema_length=None)


def make(folder, table, metadata=(), **options):
    return make_dataset(folder, Card(name="six", metadata=metadata), table, **options)


def refused(folder, table, message, **options):
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        make(folder, table, **options)
    assert not (folder / CARD).exists()


def test_what_was_made_is_read_again(tmp_path, table):
    made = make(tmp_path, table.with_columns(habitat=pl.lit("shore")), metadata=("habitat",))
    read = load_dataset(tmp_path)
    assert read.card == made.card
    assert read.table.equals(made.table)
    assert read.digest == made.digest


def test_digests_are_of_the_files(tmp_path, table):
    made = make(tmp_path, table)
    assert made.table["digest"].to_list() == [sha256(path) for path in made.paths()]


def test_without_groups_each_photograph_is_one(tmp_path, table):
    made = make(tmp_path, table)
    assert made.groups().tolist() == made.table["digest"].to_list()


def test_a_group_that_is_null_is_the_photograph_itself(tmp_path, table):
    made = make(tmp_path, table.with_columns(group=pl.Series(["x", "x", None, None, None, None])))
    assert made.groups().tolist() == ["x", "x", *made.table["digest"][2:]]


def test_paths_start_at_the_root(tmp_path, table):
    out = tmp_path / "elsewhere"
    made = make_dataset(out, Card(name="six", root=tmp_path), table)
    assert made.paths()[0] == tmp_path / "0.png"
    assert (out / TABLE).is_file()


def test_class_names_are_sorted_and_those_of_train(tmp_path, table):
    made = make(tmp_path, table.reverse())
    assert made.class_names == ("a", "b")
    assert made.labels().tolist() == [1, 0, 1, 0, 1, 0]


def test_a_part_keeps_the_class_names_of_the_whole(tmp_path, table):
    part = make(tmp_path, changed(table, 5, label="a")).split("test")
    assert part.class_names == ("a", "b")
    assert len(part) == 2
    assert part.labels().tolist() == [0, 0]


def test_test_sets_are_what_is_neither_train_nor_val(tmp_path, table):
    made = make(tmp_path, changed(table, 5, split="abroad"))
    assert made.test_sets == ("abroad", "test")


def test_an_unknown_split(tmp_path, table):
    made = make(tmp_path, table)
    with pytest.raises(
        DatasetError, match=rf"^{re.escape(str(tmp_path))} has no split 'dev'; it has test, train, val$"
    ):
        made.split("dev")


@pytest.mark.parametrize("column", ["path", "label", "split"])
def test_a_missing_column(tmp_path, table, column):
    left = ", ".join(c for c in table.columns if c != column)
    refused(tmp_path, table.drop(column), f"the table lacks column '{column}'; it has {left}")


def test_a_missing_metadata_column(tmp_path, table):
    message = "the table lacks column 'habitat'; it has path, label, split"
    refused(tmp_path, table, message, metadata=("habitat",))


def test_no_photographs(tmp_path, table):
    refused(tmp_path, table.clear(), "the table has no photographs; nothing to make a data set of")


def test_a_missing_file(tmp_path, table):
    (tmp_path / "2.png").unlink()
    (tmp_path / "4.png").unlink()
    refused(tmp_path, table, f"2 of 6 photographs are missing, first {tmp_path / '2.png'}")


@pytest.mark.parametrize(("split", "left"), [("train", "test, val"), ("val", "test, train")])
def test_a_missing_split(tmp_path, table, split, left):
    refused(tmp_path, table.filter(pl.col("split") != split), f"there is no split '{split}'; got {left}")


def test_no_split_at_all(tmp_path, table):
    none = table.with_columns(split=pl.lit(None, pl.String))
    refused(tmp_path, none, "there is no split 'train'; got none")


def test_a_row_without_a_split(tmp_path, table):
    refused(tmp_path, changed(table, 4, split=None), "1 rows have no split; expected train, val or a test set's name")


@pytest.mark.parametrize("row", [1, 2])
def test_a_label_missing_where_one_fits(tmp_path, table, row):
    message = f"1 photographs of train or val have no label, first {row}.png"
    refused(tmp_path, changed(table, row, label=None), message)


def test_one_class(tmp_path, table):
    one = table.with_columns(label=pl.lit("a"))
    refused(tmp_path, one, "train has 1 class (a); expected at least two to tell apart")


@pytest.mark.parametrize(("row", "split"), [(3, "val"), (5, "test")])
def test_a_class_without_a_training_photograph(tmp_path, table, row, split):
    message = f"class 'c' is in '{split}' but has no photograph in train; move some there"
    refused(tmp_path, changed(table, row, label="c"), message)


def test_a_class_without_a_validation_photograph(tmp_path, table):
    message = "class 'b' has no photograph in 'val'; nothing can be chosen for it, move some there"
    refused(tmp_path, changed(table, 3, label="a"), message)


def test_a_class_without_a_validation_photograph_may_be_allowed(tmp_path, table):
    made = make(tmp_path, changed(table, 3, label="a"), allow_absent_in_val=True)
    assert made.class_names == ("a", "b")
    assert made.split("val").labels().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("rows", "roles"), [((0, 2), "train and val"), ((0, 4), "a test set and train"), ((2, 4), "a test set and val")]
)
def test_a_group_in_two_splits(tmp_path, table, rows, roles):
    groups = table.with_columns(group=pl.Series(["g" if i in rows else f"own {i}" for i in range(6)]))
    refused(tmp_path, groups, f"group 'g' is in {roles}; a group must stay in one of train, val and test")


def test_test_sets_may_share_groups_and_photographs(tmp_path, table):
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes())
    shared = changed(table, 5, split="reversed", label="a")
    assert make(tmp_path, shared).test_sets == ("reversed", "test")


@pytest.fixture
def twins(tmp_path, table):
    """The first photograph is in val once more, under another group."""
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    return table.with_columns(group=pl.col("path"))


def test_a_photograph_in_two_splits(tmp_path, twins):
    message = "0.png and 2.png are the same photograph, in train and val; remove one or pass --allow"
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}"):
        make(tmp_path, twins)


def test_a_photograph_in_two_splits_may_be_allowed(tmp_path, twins):
    assert len(make(tmp_path, twins, allow_duplicates=True)) == 6


@pytest.mark.parametrize("month", ["13", "0", "5.5", "May", "-1", "nan"])
def test_a_month_that_is_none(tmp_path, table, month):
    months = table.with_columns(month=pl.Series(["1", month, None, "2", "3", "4"]))
    refused(tmp_path, months, f"month is '{month}'; expected 1 to 12 or nothing", metadata=("month",))


def test_months_are_written_as_requests_write_them(tmp_path, table):
    months = table.with_columns(month=pl.Series(["05", "5.0", " 12 ", None, "", "1"]))
    made = make(tmp_path, months, metadata=("month",))
    assert made.table["month"].to_list() == ["5", "5", "12", None, None, "1"]


def test_metadata_are_trimmed_as_requests_are(tmp_path, table):
    habitats = table.with_columns(habitat=pl.Series([" shore ", "shore", "  ", "", None, "a b"]))
    made = make(tmp_path, habitats, metadata=("habitat",))
    assert made.metadata() == [{"habitat": "shore"}, {"habitat": "shore"}, {}, {}, {}, {"habitat": "a b"}]


def test_metadata_can_be_narrowed(tmp_path, table):
    both = table.with_columns(habitat=pl.lit("shore"), month=pl.lit("5"))
    made = make(tmp_path, both, metadata=("habitat", "month"))
    assert made.split("val").metadata(["month", "unheard"]) == [{"month": "5"}] * 2
    assert made.metadata([]) == [{}] * 6


def test_labels_may_be_missing_in_a_test_set(tmp_path, table):
    made = make(tmp_path, changed(table, 4, label=None))
    message = (
        f"{tmp_path}: label None is no class of the training split (a, b…); "
        "give every photograph to be scored a known label"
    )
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        made.split("test").labels()
    assert made.split("val").labels().dtype == np.int64


CHANGES = {"label": "a", "split": "other", "group": "g", "habitat": "meadow"}


@pytest.mark.parametrize("column", CHANGES)
def test_the_digest_changes_with_any_column_that_matters(tmp_path, table, column):
    whole = table.with_columns(group=pl.col("path"), habitat=pl.lit("shore"))
    first = make(tmp_path, whole, metadata=("habitat",)).digest
    assert make(tmp_path, changed(whole, 5, **{column: CHANGES[column]}), metadata=("habitat",)).digest != first


def test_the_digest_changes_with_a_photograph(tmp_path, table):
    first = make(tmp_path, table.with_columns(group=pl.col("path"))).digest
    (tmp_path / "5.png").write_bytes(b"other")
    assert make(tmp_path, table.with_columns(group=pl.col("path"))).digest != first


def test_the_digest_knows_a_missing_value_from_none(tmp_path, table):
    whole = table.with_columns(habitat=pl.lit("shore"))
    first = make(tmp_path, whole, metadata=("habitat",)).digest
    assert make(tmp_path, changed(whole, 5, habitat=None), metadata=("habitat",)).digest != first


def test_the_digest_depends_on_no_order_even_of_copies(tmp_path, table):
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes())
    first = make(tmp_path, table).digest
    assert make(tmp_path, table.reverse()).digest == first


def test_no_folder(tmp_path):
    message = f"{tmp_path / 'none'} is no data set: {CARD} is missing; make one with: l2r2 data --help"
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        load_dataset(tmp_path / "none")


@pytest.mark.parametrize("name", [CARD, TABLE])
def test_a_half_data_set(tmp_path, table, name):
    make(tmp_path, table)
    (tmp_path / name).unlink()
    message = f"{tmp_path} is no data set: {name} is missing; make one with: l2r2 data --help"
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", [CARD, TABLE])
def test_a_damaged_data_set(tmp_path, table, name):
    make(tmp_path, table)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(DatasetError, match=rf"^{re.escape(str(tmp_path))} cannot be read: .*; make it again$"):
        load_dataset(tmp_path)


def test_a_card_with_an_unknown_key(tmp_path, table):
    make(tmp_path, table)
    (tmp_path / CARD).write_text('{"name": "six", "colour": 1}')
    with pytest.raises(DatasetError, match=r"cannot be read: 1 validation error for Card; make it again$"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("column", ["digest", "habitat"])
def test_a_table_that_lacks_a_column(tmp_path, table, column):
    made = make(tmp_path, table.with_columns(habitat=pl.lit("shore")), metadata=("habitat",))
    made.table.drop(column).write_parquet(tmp_path / TABLE)
    message = f"{tmp_path / TABLE} lacks column '{column}'; expected path, label, split, group, digest"
    with pytest.raises(DatasetError, match=rf"^{re.escape(message)}$"):
        load_dataset(tmp_path)
