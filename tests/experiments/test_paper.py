"""The paper's numbers, checked against each other; and ours beside them, from a real tracking store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from l2r2.cli import experiments, paper
from l2r2.cli.progress import Bars
from l2r2.datasets import Card
from l2r2.datasets.dataset import make_dataset
from l2r2.errors import ArtifactError, ConfigError, InputError
from l2r2.experiments.paper import (
    TITLES,
    Need,
    draw_figure,
    figure_needs,
    gather,
    markdown,
    paper_table,
    run_needs,
    table_needs,
)
from l2r2.experiments.run import Done
from l2r2.tracking import Store
from tests.tiny import BLUE, RED, make_photo

pytest.importorskip("mlflow")

# --- the paper's numbers -------------------------------------------------------------------------------------------

SHAPES = {
    1: (11, 9, 99), 2: (17, 1, 17), 3: (6, 6, 36), 4: (2, 4, 8), 5: (6, 9, 54), 6: (20, 8, 155), 7: (12, 3, 36),
    8: (6, 3, 18), 9: (25, 4, 92), 10: (23, 4, 92), 11: (25, 4, 100), 12: (25, 3, 71), 13: (19, 2, 38),
    14: (25, 3, 71), 15: (16, 3, 48),
}  # fmt: skip
"""Table → rows, columns, cells. Of 9, 12 and 14 some are blank; of 6 SigLIP2 on Fungi."""

INCREMENTS = {
    1: """
FG | +0.46 -0.41 +4.60 +0.97 +48.11 +3.21 -0.02 -0.08 +7.11
BG | +0.51 -16.57 -1.60 -38.94 -40.58 -9.11 -10.73 -19.41 -17.05
FG ⊕* BG | +1.66 +1.61 +8.67 +0.99 +22.60 +4.78 +1.29 +2.48 +5.51
FG ⊕max BG | +1.44 +0.60 +8.67 -6.50 -17.30 +4.04 +1.01 -1.62 -1.21
FG ⊕WL BG | +1.60 0.00 +9.11 -3.07 -15.49 +4.78 +1.29 +2.48 +0.09
FG ⊕R BG | +0.78 +0.40 +5.66 +0.66 +48.05 +4.22 +1.17 -1.31 +7.45
FG ⊕* FULL | +1.52 -0.41 +7.43 +1.88 -0.20 +4.69 +1.75 +5.10 +2.72
FG ⊕max FULL | +1.39 -0.41 +7.79 +1.41 +33.46 +3.87 +1.49 +2.00 +6.38
FG ⊕WL FULL | +1.68 +0.20 +8.05 +1.78 +33.75 +4.69 +1.75 +5.10 +7.12
FG ⊕R FULL | +0.78 -0.61 +5.84 +1.38 +48.06 +4.03 +1.47 +1.56 +7.81
""",
    2: """
ERM [53] | +6.14
GroupDRO [44] | +9.23
IRM | +4.10
CORAL [49] | +18.31
CausIRL [10] | +17.97
MMD-AAE [24] | +7.46
Fish [46] | +6.16
VREX [23] | +13.34
W2D [18] | +10.59
JTT [25] | +18.89
Mixup [60] | +17.13
Mixup [62] | +17.29
FG_C | +23.65
FG_M | +24.24
BG | -62.45
FG_C ⊕R BG | +15.43
""",
    5: """
BG | -1.86 -10.54 -11.12 -62.37 -16.92 -11.49 -13.47 -18.25 -16.43
FG | -2.53 +0.00 -1.67 +0.37 +1.33 -1.31 -0.92 -0.68 -1.75
CENTERCROP | -4.00 -12.16 -7.03 -3.22 0.00 0.17 -1.20 -3.92 -0.19
FG ⊕max BG | +1.34 +0.00 +1.57 +0.58 -0.41 -0.63 -2.61 -0.02 +14.92
FG ⊕max FULL | +1.07 +0.00 +2.01 +0.97 +1.09 +0.17 -1.16 +0.59 +19.18
""",
    6: """
CLIP-B: FG ⊕max BG | +2.4 -1.7 +6.82 +7.56 +4.05 +0.57 -0.29 +1.07
CLIP-B: FG ⊕max FULL | +2.8 +2.34 +6.82 +7.0 +4.74 +2.18 +0.54 +1.91
CLIP-B: BG | -5.2 -33.71 -21.38 -45.43 -46.83 -13.35 -15.08 -0.74
CLIP-B: FG | -0.53 -2.46 +1.69 +7.5 +5.26 -1.92 +0.32 +0.05
BioCLIP: FG ⊕max BG | -0.4 -2.61 -1.39 -0.39 +0.10 -0.16 -2.73 +14.92
BioCLIP: FG ⊕max FULL | +0.27 +2.44 -2.72 -0.18 +0.91 +2.27 -0.08 +19.18
BioCLIP: BG | -1.73 -9.10 -6.99 -2.30 -3.03 -21.25 -20.21 -16.43
BioCLIP: FG | -5.87 +0.89 -3.69 +0.03 +0.92 -3.90 -4.08 -1.75
CLIP-L: FG ⊕max BG | +1.34 +1.41 +3.52 +5.10 +0.15 -0.33 +0.85 +1.42
CLIP-L: FG ⊕max FULL | +2.40 +1.41 +3.97 +4.62 +0.69 +0.38 +1.12 +2.26
CLIP-L: BG | -2.53 -29.51 -16.52 -59.15 -24.14 -15.74 -16.55 -1.20
CLIP-L: FG | -0.66 +1.02 -1.76 +5.08 +0.71 -0.99 +0.23 +0.11
SigLIP2-SO: FG ⊕max BG | +1.34 +0.00 +1.57 +0.58 -0.41 -0.63 -2.61
SigLIP2-SO: FG ⊕max FULL | +1.07 +0.00 +2.01 +0.97 +1.09 +0.17 -1.16
SigLIP2-SO: BG | -1.86 -10.54 -11.12 -62.37 -16.92 -11.49 -13.47
SigLIP2-SO: FG | -2.53 +0.00 -1.67 +0.37 +1.33 -1.31 -0.92
""",
}
"""What the paper prints beside its values: the difference to FULL, column by column."""

DIFFER = {
    ("FULL", "fungitastic-mini", "test"),  # table 4 against 1, 3 and 9
    ("FG_C", "fungitastic-mini", "test"),  # likewise
    ("FG_C⊕* BG_S", "spawrious-100", "test"),  # 65.80 in table 1, 65.81 in 3 and 14
    ("FG_C⊕* FULL", "spawrious-100", "test"),  # 43.00 in table 1, 43.77 in 3, from 43.06 in 14
    ("FULL×2", "hard-imagenet", "lt"),  # swapped in table 7
    ("FULL×2", "hard-imagenet", "ct"),  # likewise
}
"""What the paper prints twice, and not the same: system, data set, split."""


def cells(number: int) -> list[dict[str, object]]:
    return paper_table(number).to_dicts()


def value(number: int, row: str, column: str) -> float:
    (found,) = (c["value"] for c in cells(number) if (c["row"], c["column"]) == (row, column))
    return float(str(found))


@pytest.mark.parametrize("number", TITLES)
def test_rows_columns_and_cells_are_as_many_as_the_paper_prints(number: int) -> None:
    table = paper_table(number).drop_nulls("value")
    assert (table["row"].n_unique(), table["column"].n_unique(), len(table)) == SHAPES[number]
    assert not table.select("row", "column").is_duplicated().any()


def test_values_are_percentages_and_every_cell_says_where_it_comes_from() -> None:
    for number in TITLES:
        table = paper_table(number)
        assert table["value"].drop_nulls().is_between(0, 100).all()
        assert table["std"].drop_nulls().is_between(0, 50).all()
        means = table.filter(pl.col("split") == "mean")
        assert means["recipe"].null_count() == len(means)
        rest = table.filter(pl.col("split") != "mean")
        assert not any(rest[name].null_count() for name in ("recipe", "dataset", "system", "metric"))
        assert set(rest["metric"]) <= {"accuracy", "macro"}


def test_table_4_has_the_published_formula_and_a_shuffled_control_that_the_paper_does_not_print() -> None:
    ours = paper_table(4).filter(pl.col("value").is_null())
    assert sorted(ours["row"].unique()) == [
        "FG, published formula", "FG, shuffled metadata", "FULL, published formula", "FULL, shuffled metadata",
    ]  # fmt: skip
    assert set(ours["column"]) == {"+habitat", "+substrate", "+month"}
    assert all(table["value"].null_count() == 0 for number in TITLES if number != 4 for table in [paper_table(number)])


@pytest.mark.parametrize("number", INCREMENTS)
def test_increments_that_the_paper_prints_are_differences_of_our_values(number: int) -> None:
    columns = paper_table(number)["column"].unique(maintain_order=True).to_list()
    lines = INCREMENTS[number].strip().splitlines()
    for line in lines:
        row, _, printed = line.partition(" | ")
        full = f"{row.split(':')[0]}: FULL" if ":" in row else "FULL"
        for column, increment in zip(columns, printed.split(), strict=False):
            difference = value(number, row, column) - value(number, full, column)
            assert difference == pytest.approx(float(increment), abs=0.0201), (row, column)
    assert len(lines) == SHAPES[number][0] - (4 if number == 6 else 1)


def test_increments_of_table_4() -> None:
    printed = {"FULL": (3.77, 1.92, 1.70), "FG": (4.22, 1.77, 1.81)}
    for row, increments in printed.items():
        for column, increment in zip(("+habitat", "+substrate", "+month"), increments, strict=True):
            assert value(4, row, column) - value(4, row, "img") == pytest.approx(increment, abs=0.02)


@pytest.mark.parametrize("number", [1, 5])
def test_means_are_those_of_the_cells_to_their_left(number: int) -> None:
    for _, row in paper_table(number).group_by("row"):
        end = row["column"].to_list().index("mean")
        assert row["value"][end] == pytest.approx(row["value"][:end].mean(), abs=0.0101)


def test_what_the_paper_prints_twice_is_the_same_both_times() -> None:
    key = ["recipe", "dataset", "system", "split", "metric"]
    every = pl.concat([paper_table(number) for number in TITLES]).drop_nulls("recipe")
    twice = every.group_by(key).agg("value", "note", "table").filter(pl.col("value").list.len() > 1)
    assert len(twice) > 100
    spread = pl.col("value").list.max() - pl.col("value").list.min()
    differ = twice.filter(spread > 0.001)
    assert set(differ.select("system", "dataset", "split").iter_rows()) == DIFFER
    assert all(any(notes) for notes in differ["note"])  # and each is noted


BEST = {"WeightedLogitsComb": "WeightedLogitsComb", "Concat+ FC": "Concatenate + FC layers",
        "TempScaled WAvG": "TempScaled WeightedAvg", "Max scaled conf": "Max scaled conf"}  # fmt: skip
"""How the row Best calls an operator → the operator's own row."""


@pytest.mark.parametrize("number", [9, 10, 11, 12, 13])
def test_the_best_fusion_repeats_its_own_row_spread_included(number: int) -> None:
    by_row = {(c["row"], c["column"]): (c["value"], c["std"]) for c in cells(number)}
    best = {place: got for place, got in by_row.items() if ": Best - " in str(place[0])}
    assert len(best) in {4, 8}
    for (row, column), got in best.items():
        pair, _, name = str(row).partition(": Best - ")
        assert got == by_row[f"{pair}: {BEST[name]}", column]


def test_full_is_the_same_model_whatever_the_masks() -> None:
    for row in ("FULL", "FULL×2 Best - TempScaled WAvg"):
        ten, eleven = (
            [(c["split"], c["value"], c["std"]) for c in cells(number) if c["row"] == row] for number in (10, 11)
        )
        assert ten == eleven
        assert len(ten) == 4


def test_a_table_that_the_paper_does_not_have() -> None:
    with pytest.raises(InputError, match=r"^the paper has no table 16; expected 1 to 15$"):
        paper_table(16)


def test_what_a_table_needs_is_in_its_own_order() -> None:
    hard = "hard-imagenet"
    assert table_needs(7) == [Need(hard, hard), Need("hard-imagenet-gt", hard), Need("hard-imagenet-topk-owl", hard)]
    assert str(table_needs(9)[0]) == "l2r2 train fungi --data …; data set fungitastic-mini"


# --- ours beside them ----------------------------------------------------------------------------------------------

Values = Mapping[tuple[str, str], list[float]]
"""(split, system) → one value a seed, [0, 1]."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def store(uri: str) -> Store:
    return Store(uri)


def track(store: Store, need: Need, values: Values, folder: Path, metric: str = "accuracy") -> str:
    """A finished experiment with these results."""
    rows = [
        (split, system, seed, metric, got, 100)
        for (split, system), by_seed in values.items()
        for seed, got in enumerate(by_seed)
    ]
    table = pl.DataFrame(rows, schema=["split", "system", "seed", "metric", "value", "n"], orient="row")
    return keep(store, need, {"results": table}, folder)


def keep(store: Store, need: Need, tables: Mapping[str, pl.DataFrame], folder: Path) -> str:
    with store.run(need.recipe, need.recipe, {"kind": "experiment", "dataset": need.dataset}) as run:
        for name, table in tables.items():
            table.write_parquet(folder / f"{name}.parquet")
            run.file(folder / f"{name}.parquet", "tables")
    return run.id


DOGS = Need("dogs", "stanford-dogs")
SIGLIP = [need for need in table_needs(5) if need.recipe != "fungi-bioclip"]


@pytest.fixture(scope="module")
def dogs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The newest of three experiments, beside one of another data set and one that broke off."""
    folder = tmp_path_factory.mktemp("dogs")
    track(store, DOGS, {("test", "FULL"): [0.1]}, folder)
    values = {
        ("test", "FULL"): [0.90, 0.91, 0.92],
        ("val", "FULL"): [0.5, 0.7],
        ("test", "FG_C⊕* FULL"): [0.95],
        ("test", "not in the paper"): [1.0],
    }
    newest = track(store, DOGS, values, folder)
    track(store, Need("dogs", "other-dogs"), {("test", "FULL"): [0.2]}, folder)
    with (
        pytest.raises(ZeroDivisionError),
        store.run("dogs", "dogs", {"kind": "experiment", "dataset": "stanford-dogs"}),
    ):
        raise ZeroDivisionError
    return newest


@pytest.fixture(scope="module")
def zero_shot(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All of table 5 but Fungi: FULL everywhere, FG_C not on CounterAnimal."""
    folder = tmp_path_factory.mktemp("zero-shot")
    splits = {"hard-imagenet": ("test", "ct", "lt"), "counter-animal": ("common", "rare")}
    shares = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    for need in SIGLIP:
        values = {(split, "FULL"): [next(shares)] for split in splits.get(need.dataset, ("test",))}
        if need.dataset != "counter-animal":
            values |= {(split, "FG_C"): [0.5] for split, _ in values}
        track(store, need, values, folder, metric="macro")


def ours(store: Store, number: int) -> dict[tuple[str, str], dict[str, object]]:
    return {(c["row"], c["column"]): c for c in gather(store, number).cells.iter_rows(named=True)}


def test_ours_is_the_mean_over_seeds_with_sample_deviation_and_difference(store: Store, dogs: str) -> None:
    found = ours(store, 12)
    cell = found["FULL", "Test acc"]
    assert cell["ours"] == pytest.approx(91.0)
    assert cell["ours_std"] == pytest.approx(1.0)  # (1 + 0 + 1) / 2
    assert cell["difference"] == pytest.approx(91.0 - 90.28)
    assert (cell["seeds"], cell["n"], cell["value"], cell["std"]) == (3, 100, 90.28, 0.32)
    assert found["FULL", "Val acc"]["ours_std"] == pytest.approx(100 * 0.02**0.5)
    assert len(found) == 71


def test_one_seed_has_no_deviation(store: Store, dogs: str) -> None:
    cell = ours(store, 12)["FG_C ⊕ FULL: Best - Max scaled conf", "Test acc"]
    assert (cell["ours"], cell["ours_std"]) == (pytest.approx(95.0), None)


def test_the_newest_finished_run_of_the_data_set_is_taken(store: Store, dogs: str) -> None:
    filled = gather(store, 12)
    assert filled.runs == {DOGS: dogs}
    assert filled.missing == []


def test_accuracy_does_not_stand_in_for_macro_accuracy(
    store: Store, uri: str, dogs: str, zero_shot: None, tmp_path: Path
) -> None:
    track(store, Need("fungi", "fungitastic-mini"), {("test", "FULL"): [0.6]}, tmp_path)
    found = ours(store, 9)
    assert found["FULL", "Test acc"]["ours"] == pytest.approx(60.0)
    assert found["FULL", "Test avg acc"]["ours"] is None


def test_a_mean_is_there_once_all_to_its_left_are(store: Store, zero_shot: None) -> None:
    found = ours(store, 5)
    assert found["FULL", "mean"]["ours"] == pytest.approx(60.0)  # 90, 80, …, 30
    assert found["FULL", "mean"]["difference"] == pytest.approx(60.0 - 93.69)
    assert found["FG", "Dogs Original"]["ours"] == pytest.approx(50.0)
    assert found["FG", "mean"]["ours"] is None
    assert found["BG", "mean"]["ours"] is None
    assert found["FULL", "Fungi Original (BioCLIP)"]["ours"] is None


def test_missing_experiments_are_listed_in_table_order(store: Store, dogs: str, zero_shot: None) -> None:
    missing = gather(store, 5).missing
    assert missing == [Need("fungi-bioclip", "fungitastic-mini")]
    assert gather(store, 8).missing == table_needs(8)


def test_markdown_has_the_papers_shape(store: Store, dogs: str) -> None:
    lines = markdown(gather(store, 12)).splitlines()
    assert lines[0] == "## Table 12. Stanford Dogs, every system"
    rows = [line for line in lines if line.startswith("| ")]
    assert rows[0] == "| | Train acc | Val acc | Test acc |"
    assert len(rows) == 1 + 25
    assert rows[1] == (
        "| FULL | — (paper 98.77 ± 1.01) | 60.00 ± 14.14 (paper 90.01 ± 0.42, -30.01) "
        "| 91.00 ± 1.00 (paper 90.28 ± 0.32, +0.72) |"
    )
    best = next(row for row in rows if "FG_C ⊕ FULL: Best" in row)
    assert best.startswith("| FG_C ⊕ FULL: Best - Max scaled conf |  | — (paper 91.43 ± 0.35) | 95.00 (paper 92.16")
    assert any(line.startswith(f"- dogs on stanford-dogs: run {dogs}, 3 seeds; ") for line in lines)
    assert "- dogs on stanford-dogs: that run lacks 68 of the 71 cells, first FULL on train (accuracy)" in lines


def test_markdown_of_nothing_says_what_is_needed_and_what_the_paper_leaves_open(store: Store) -> None:
    text = markdown(gather(store, 14))
    assert "\n- needs: l2r2 train spawrious --data …; data set spawrious-100\n" in text
    note = "the paper gives a range, 65.81 to 66.15; the lower end stands here"
    assert f"\n- FG_C ⊕ BG_S: Best, Test acc: {note}\n" in text
    assert text.count("— (paper ") == 71
    assert "Runs:" not in text


# --- figures -------------------------------------------------------------------------------------------------------


def test_a_figure_without_runs_says_what_it_needs(store: Store, tmp_path: Path) -> None:
    one, other = (rf"l2r2 train hard-imagenet-topk-{name} --data …; data set hard-imagenet" for name in ("owl", "dino"))
    with pytest.raises(ArtifactError, match=rf"^figure 11 needs: {one}; or {other}$"):
        draw_figure(store, 11, tmp_path / "11.png")
    assert not list(tmp_path.iterdir())


def test_figures_that_nobody_can_draw(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^figure 3 is not one that runs can draw; expected one of 8, 11, 12$"):
        figure_needs(3)
    with pytest.raises(InputError, match=r"^figure file is 'a\.jpeg'; expected a name that ends in"):
        draw_figure(store, 8, tmp_path / "a.jpeg")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A store with what figures 8, 11 (one of two) and 12 are drawn from."""
    folder = tmp_path_factory.mktemp("figures")
    store = Store(f"sqlite:///{folder / 'mlflow.db'}")
    weights = pl.DataFrame(
        {"class": ["a", "b", "c", "d"], "w_fg": [2.0, 1.5, 1.0, 0.2], "w_full": [1.0, 1.0, 0.9, 0.4]}
    )
    keep(store, figure_needs(8)[0], {"wl_weights": weights}, folder)
    found = pl.DataFrame({"digest": list("abcd"), "found": [1, 1, 0, 3]})
    keep(store, figure_needs(11)[0], {"candidates": found}, folder)
    rows = [
        (split, system, name, accuracy, n)
        for split, shift in (("lt", 0.0), ("test", 0.4))
        for system, accuracies in {
            "FULL": (0.5, 0.5), "FG_C": (0.6, 0.4), "BG_S": (0.4, 0.4), "FG_C⊕* BG_S": (0.6, 0.5), "FG_M": (0.0, 0.0)
        }.items()
        for name, accuracy, n in zip(("sled", "ski"), accuracies, (30, 10), strict=True)
        for accuracy in [accuracy + shift]
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=["split", "system", "class", "accuracy", "n"], orient="row")
    keep(store, figure_needs(12)[0], {"per_class": table}, folder)
    return store, folder


@pytest.mark.parametrize(
    ("number", "missing", "texts"),
    [
        (8, [], ["FULL weighs more than FG in 25 % of the classes (the paper: about 15 %)"]),
        (11, [figure_needs(11)[1]], ["hard-imagenet-topk-owl: mean 1.25, n = 4"]),
        # FG_C: (+10 · 30 - 10 · 10) / 40
        (12, [], ["FG_C: +5.0 in all", "BG_S: -10.0 in all", "FG_C⊕* BG_S: +7.5 in all", "sled", "ski"]),
    ],
)
def test_figures_are_drawn_from_the_runs(
    drawn: tuple[Store, Path], number: int, missing: list[Need], texts: list[str]
) -> None:
    store, folder = drawn
    assert draw_figure(store, number, folder / "figure.svg") == missing
    svg = (folder / "figure.svg").read_text(encoding="utf-8")
    for text in texts:
        assert f"<!-- {text} -->" in svg
    assert draw_figure(store, number, folder / "figure.png") == missing
    with Image.open(folder / "figure.png") as image:
        assert image.size == (990, 495)


def test_a_run_without_the_systems_of_figure_12_is_named(store: Store, tmp_path: Path) -> None:
    table = pl.DataFrame({"split": ["lt"], "system": ["FULL"], "class": ["ski"], "accuracy": [0.5], "n": [1]})
    keep(store, figure_needs(12)[0], {"per_class": table}, tmp_path)
    with pytest.raises(ArtifactError, match=r"^figure 12 needs accuracies of FG_C on 'lt', which the run"):
        draw_figure(store, 12, tmp_path / "12.png")


# --- training what is missing, and the command line ----------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one data set in its place, and one in another's."""
    folder = tmp_path_factory.mktemp("data")
    for place in ("stanford-dogs", "imagenet"):
        (folder / place).mkdir()
        rows = []
        for split in ("train", "val"):
            for i, colour in enumerate((RED, BLUE)):
                path = folder / place / f"{split}-{i}.png"
                photo = make_photo(colour)
                photo[0, 0] = len(split)
                Image.fromarray(photo).save(path)
                rows.append((path.name, str(i), split))
        table = pl.DataFrame(rows, schema=["path", "label", "split"], orient="row")
        make_dataset(folder / place, Card(name="stanford-dogs"), table)
    return folder


def test_what_has_its_data_set_is_trained_and_the_rest_named(data: Path) -> None:
    asked: list[tuple[str, Path]] = []

    def train(recipe: str, folder: Path) -> str:
        asked.append((recipe, folder))
        if recipe == "dogs-broken":
            raise ConfigError("weights/sam.pth is missing")
        return f"run of {recipe}"

    needs = [Need("fungi", "fungitastic-mini"), Need("imagenet", "imagenet")]
    needs += [Need("dogs-broken", "stanford-dogs"), DOGS]
    outcomes = list(run_needs(needs, data, train))
    assert asked == [("dogs-broken", data / "stanford-dogs"), ("dogs", data / "stanford-dogs")]
    assert [(o.run_id, o.failed) for o in outcomes] == [
        (None, False),
        (None, False),
        (None, True),
        ("run of dogs", False),
    ]
    assert outcomes[0].problem == f"no data set at {data / 'fungitastic-mini'}"
    assert outcomes[1].problem == f"{data / 'imagenet'} holds the data set 'stanford-dogs'; expected 'imagenet'"
    assert outcomes[2].problem == "weights/sam.pth is missing"


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    paper.register(made)
    return made


def test_table_prints_markdown_and_keeps_it(app: typer.Typer, store: Store, uri: str, dogs: str) -> None:
    shown = CliRunner().invoke(app, ["experiments", "table", "12", "--tracking-uri", uri])
    assert shown.exit_code == 0, shown.output
    assert shown.output == markdown(gather(store, 12))
    kept = store.finished("paper", {"kind": "table", "table": "12"})
    assert kept is not None
    assert store.download(kept, "tables/table-12.md").read_text(encoding="utf-8") == shown.output


def test_table_as_json(app: typer.Typer, uri: str, dogs: str) -> None:
    shown = CliRunner().invoke(app, ["experiments", "table", "12", "--json", "--tracking-uri", uri])
    found = json.loads(shown.output)
    assert found["runs"] == [{"recipe": "dogs", "dataset": "stanford-dogs", "run_id": dogs}]
    cell = next(c for c in found["cells"] if (c["row"], c["column"]) == ("FULL", "Test acc"))
    assert (cell["value"], round(cell["ours"], 6), cell["n"]) == (90.28, 91.0, 100)


def test_an_unknown_table_is_an_error_of_ours(app: typer.Typer, uri: str) -> None:
    shown = CliRunner().invoke(app, ["experiments", "table", "99", "--tracking-uri", uri])
    assert isinstance(shown.exception, InputError)


def test_list_says_what_is_tracked(app: typer.Typer, uri: str, dogs: str, zero_shot: None) -> None:
    shown = CliRunner().invoke(app, ["experiments", "list", "--tracking-uri", uri])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    place = lines.index("table 12: Stanford Dogs, every system (1 of 1 tracked)")
    assert lines[place + 1] == f"  dogs on stanford-dogs: run {dogs}"
    assert "  hard-imagenet-topk-dino on hard-imagenet: not tracked" in lines
    assert sum(line.startswith("table ") for line in lines) == 15
    assert sum(line.startswith("figure ") for line in lines) == 3
    shown = CliRunner().invoke(app, ["experiments", "list", "--json", "--tracking-uri", uri])
    (found,) = (f for f in json.loads(shown.output) if (f["kind"], f["number"]) == ("table", 12))
    assert found["needs"] == [{"recipe": "dogs", "dataset": "stanford-dogs", "run_id": dogs}]


def test_figure_writes_a_file_and_says_what_it_went_without(
    app: typer.Typer, drawn: tuple[Store, Path], tmp_path: Path
) -> None:
    out = tmp_path / "eleven.png"
    shown = CliRunner().invoke(app, ["experiments", "figure", "11", "--out", str(out), "--tracking-uri", drawn[0].uri])
    assert shown.exit_code == 0, shown.output
    assert out.is_file()
    needed = "needs: l2r2 train hard-imagenet-topk-dino --data …; data set hard-imagenet"
    assert shown.output == f"{out}\n{needed}\n"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[object, ...]]]:
    """What `run` asks of `l2r2 train`; training itself has its own tests."""
    asked: list[tuple[object, ...]] = []

    def train_recipe(recipe: str, data: Path, store: Store, work: Path, bars: Bars) -> Done:
        assert isinstance(bars, Bars)
        asked.append((recipe, data, store.uri, work))
        if len(asked) > 1:
            raise ConfigError("the second time something is wrong")
        return Done("0123", reused=False)

    monkeypatch.setattr(experiments, "train_recipe", train_recipe)
    return asked


def test_run_trains_as_l2r2_train_does_and_fails_if_one_does(
    app: typer.Typer, uri: str, data: Path, tmp_path: Path, trained: list[tuple[object, ...]]
) -> None:
    words = ["experiments", "run", "12", "--data", str(data), "--tracking-uri", uri, "--work", str(tmp_path)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == "dogs on stanford-dogs: run 0123\n"
    assert trained == [("dogs", data / "stanford-dogs", uri, tmp_path)]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == 1
    (found,) = json.loads(shown.stdout)
    assert found == {
        "recipe": "dogs",
        "dataset": "stanford-dogs",
        "run_id": None,
        "problem": "the second time something is wrong",
    }


def test_run_without_any_data_set_trains_nothing(
    app: typer.Typer, uri: str, tmp_path: Path, trained: list[tuple[object, ...]]
) -> None:
    shown = CliRunner().invoke(app, ["experiments", "run", "3", "--data", str(tmp_path), "--tracking-uri", uri])
    assert shown.exit_code == 0
    assert trained == []
    assert shown.output.count("not trained: no data set at ") == len(table_needs(3)) == 4


@pytest.mark.parametrize("command", ["list", "table", "figure", "run"])
def test_every_command_has_help_with_an_example(app: typer.Typer, command: str) -> None:
    shown = CliRunner().invoke(app, ["experiments", command, "--help"], env={"NO_COLOR": "1"})
    assert shown.exit_code == 0
    assert f"Example: l2r2 experiments {command}" in shown.output
