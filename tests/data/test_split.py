"""Splits that are made up: whole groups, every class everywhere, by seed alone."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2r2.datasets.split import SHARES, assign, hold_out, split_by_group
from l2r2.errors import DatasetError


@st.composite
def tables(draw):
    """Two to four classes of 3 to 12 groups of 1 to 4 photographs, shuffled."""
    rows = [
        {"label": f"class {k}", "group": f"{k}/{g}"}
        for k in range(draw(st.integers(2, 4)))
        for g in range(draw(st.integers(3, 12)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    return pl.DataFrame(draw(st.permutations(rows)))


SEEDS = st.integers(0, 2**32 - 1)


@given(tables(), SEEDS)
def test_groups_stay_whole(table, seed):
    spread = split_by_group(table, seed).group_by("group").agg(pl.col("split").n_unique())
    assert spread["split"].to_list() == [1] * len(spread)


@given(tables(), SEEDS)
def test_every_class_is_in_every_split(table, seed):
    places = split_by_group(table, seed).group_by("label").agg(pl.col("split").n_unique())
    assert places["split"].to_list() == [3] * len(places)


@given(tables(), SEEDS)
def test_the_order_of_the_rows_does_not_matter(table, seed):
    assert split_by_group(table.reverse(), seed).reverse().equals(split_by_group(table, seed))


@given(tables(), SEEDS)
def test_nothing_but_the_split_is_added(table, seed):
    assert split_by_group(table, seed).drop("split").equals(table)


def test_shares_are_met():
    """100 groups: one is given to each split, the other 97 go by share: 67.9, 14.55 and 14.55, ends rounded."""
    splits = list(assign([f"{i:03d}" for i in range(100)], SHARES, 0).values())
    assert {name: splits.count(name) for name in SHARES} == {"train": 69, "val": 15, "test": 16}


def test_another_seed_splits_otherwise():
    groups = [str(i) for i in range(30)]
    assert assign(groups, SHARES, 0) == assign(groups[::-1], SHARES, 0)
    assert assign(groups, SHARES, 0) != assign(groups, SHARES, 1)


def test_too_few_groups():
    with pytest.raises(DatasetError, match=r"^2 groups for 3 splits \(train, val, test\); expected at least as many$"):
        assign(["a", "b"], SHARES, 0)


def test_a_class_with_too_few_groups():
    table = pl.DataFrame({"label": ["a"] * 3 + ["b"] * 3, "group": ["1", "2", "3", "4", "5", "5"]})
    with pytest.raises(
        DatasetError, match=r"^class 'b': 2 groups for 3 splits \(train, val, test\); expected at least as many$"
    ):
        split_by_group(table, 0)


def test_a_group_with_two_labels():
    table = pl.DataFrame({"label": ["a", "b"], "group": ["x", "x"]})
    with pytest.raises(DatasetError, match=r"^group 'x' has several labels; give the splits yourself in a table$"):
        split_by_group(table, 0)


def test_holding_out_moves_whole_groups_of_every_class_and_leaves_other_splits():
    table = pl.DataFrame(
        {
            "label": ["a"] * 40 + ["b"] * 20 + ["a"] * 5,
            "group": [f"a{i // 2}" for i in range(40)] + [f"b{i}" for i in range(20)] + [f"t{i}" for i in range(5)],
            "split": ["train"] * 60 + ["test"] * 5,
        }
    )
    held = hold_out(table, 0.1, seed=1)
    assert held.filter(pl.col("split") == "test")["group"].to_list() == [f"t{i}" for i in range(5)]
    assert held.filter(pl.col("split") == "val").group_by("label").len().sort("label")["len"].to_list() == [6, 3]
    assert (held.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all()
    assert held.equals(hold_out(table, 0.1, seed=1))
    assert not held.equals(hold_out(table, 0.1, seed=2))


def test_holding_out_needs_two_groups_a_class():
    table = pl.DataFrame({"label": ["a", "a"], "group": ["g", "g"], "split": ["train", "train"]})
    with pytest.raises(DatasetError, match=r"^class 'a': 1 groups for 2 splits"):
        hold_out(table, 0.1, seed=0)
