"""Fitting and judging every system on logits that are made up, so that the right outcome is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from l2r2.config import FusionSettings, GateSettings, Recipe
from l2r2.datasets import Card, Dataset
from l2r2.errors import ConfigError
from l2r2.experiments.splits import Split, load_splits
from l2r2.experiments.systems import Systems, fit_systems, shuffle
from l2r2.experiments.tables import ORACLE, accuracies, markdown, metrics, predictions
from l2r2.types import Region, Stage, View
from tests.fakes import make_recognizer, photo

K = 3
FG, FULL = (View.FG_C, 0), (View.FULL, 0)


def make_split(name: str, seed: int, full_trust: float, n: int = 240) -> Split:
    """FG knows the class with noise; FULL follows the class with strength `full_trust`, negative to mislead."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % K
    truth = np.eye(K)[labels]
    wrong = np.eye(K)[(labels + 1) % K]

    def noisy(scale: float, towards: np.ndarray) -> np.ndarray:
        return (scale * towards + rng.normal(size=(n, K))).astype(np.float32)

    full = truth if full_trust >= 0 else wrong
    logits = {
        FG: noisy(3.0, truth),
        (View.FG_C, 1): noisy(3.0, truth),
        FULL: noisy(abs(full_trust), full),
        (View.FULL, 1): noisy(abs(full_trust), full),
    }
    metadata = [{"habitat": f"h{label}"} if rng.uniform() < 0.8 else {"habitat": "h9"} for label in labels]
    found = rng.uniform(size=n) < 0.95
    groups = np.array([f"g{i // 4}" for i in range(n)])
    return Split(name, [f"{name}{i}" for i in range(n)], labels, groups, found, metadata, logits)


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return {
        "train": make_split("train", 0, 4.0),
        "val": make_split("val", 1, 3.0),
        "iid": make_split("iid", 2, 3.0),
        "reversed": make_split("reversed", 3, -3.0),
    }


def make_recipe(**changes: object) -> Recipe:
    return Recipe(name="test", prior={"sources": ("habitat",)}, **changes)


@pytest.fixture(scope="module")
def systems(splits: dict[str, Split]) -> Systems:
    return fit_systems(splits, make_recipe())


def accuracy(systems: Systems, split: Split, name: str) -> float:
    return float((systems.answers(split)[name].argmax(axis=1) == split.labels).mean())


def test_every_row_of_the_paper_is_there(systems: Systems, splits: dict[str, Split]) -> None:
    expected = {f"FG⊕{name} FULL" for name in ("max", "smax", "R", "avg", "wavg", "FC", "WL", "*")}
    expected |= {"FULL", "FG", "FULL×2", "FG×2", "cascade", "FULL+metadata", "FG+metadata", "FG+metadata, df20"}
    expected |= {"cascade+metadata", "cascade+shuffled metadata"}
    assert set(systems.answers(splits["iid"])) == expected


def test_nothing_found_is_fulls_answer_in_every_fusion(systems: Systems, splits: dict[str, Split]) -> None:
    split = splits["reversed"]
    answers = systems.answers(split)
    for name in ["cascade", *(n for n in answers if n.startswith("FG⊕"))]:
        np.testing.assert_array_equal(
            answers[name][~split.found].argmax(axis=1), answers["FULL"][~split.found].argmax(axis=1)
        )


def test_the_test_sets_change_nothing_that_is_fitted(splits: dict[str, Split], systems: Systems) -> None:
    again = fit_systems({"train": splits["train"], "val": splits["val"]}, make_recipe())
    assert again.policy.threshold == systems.policy.threshold
    assert again.fg_full.best == systems.fg_full.best
    assert again.priors.strength == systems.priors.strength


def test_metadata_help_and_shuffled_metadata_do_not(systems: Systems, splits: dict[str, Split]) -> None:
    split = splits["reversed"]
    assert systems.priors.strength > 0.5
    assert accuracy(systems, split, "cascade+metadata") > accuracy(systems, split, "cascade")
    assert abs(accuracy(systems, split, "cascade+shuffled metadata") - accuracy(systems, split, "cascade")) < 0.03


def test_the_one_se_gate_escalates_no_more_than_the_best_gate(splits: dict[str, Split], systems: Systems) -> None:
    best = fit_systems(splits, make_recipe(gate=GateSettings(rule="best")))
    assert systems.policy.threshold <= best.policy.threshold


def test_a_gate_that_the_recipe_gives_is_used(splits: dict[str, Split]) -> None:
    assert fit_systems(splits, make_recipe(gate=GateSettings(threshold=0.7))).policy.threshold == 0.7


@pytest.mark.parametrize("operator", ["max", "smax", "R", "avg", "wavg", "FC", "WL", "best"])
def test_the_cascade_takes_every_operator(splits: dict[str, Split], operator: str) -> None:
    fitted = fit_systems(splits, make_recipe(fusion=FusionSettings(operator=operator)))
    assert accuracy(fitted, splits["iid"], "cascade") > 0.8


def test_class_wise_temperatures_are_one_a_class(splits: dict[str, Split]) -> None:
    fitted = fit_systems(splits, make_recipe(calibration={"kind": "classwise"}))
    assert [len(t.values) for t in fitted.policy.temperatures.values()] == [K, K]


def test_validation_rates_are_shares(systems: Systems, splits: dict[str, Split]) -> None:
    rates = systems.validation_rates(splits["val"])
    assert set(rates) == {
        "photographs",
        "confidence",
        "escalated",
        "nothing_found",
        "disagreement",
        "disagreement_where_both_ran",
        "flipped_by_prior",
        "unrecognized",
        "withheld",
        "set_size",
    }
    assert 1 <= rates.pop("set_size") <= K
    assert rates.pop("photographs") == len(splits["val"].found)
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert rates["nothing_found"] == pytest.approx(1 - splits["val"].found.mean())


def test_the_disagreement_of_those_that_ran_both_is_what_a_service_sees(
    systems: Systems, splits: dict[str, Split]
) -> None:
    val = splits["val"]
    fg, full = systems.deployed(val)
    regions = [Region((0.0, 0.0, 8.0, 8.0), 1.0) if found else None for found in val.found]
    recognizer = replace(make_recognizer(fg, full, regions), policy=systems.policy, priors=systems.priors)
    predictions = recognizer.recognize([photo(i) for i in range(len(fg))], val.metadata)
    both = [each.stage_candidates for each in predictions if len(each.stages) == 2]
    seen = [one[Stage.FG][0].index != one[Stage.FULL][0].index for one in both]
    assert both
    assert systems.validation_rates(val)["disagreement_where_both_ran"] == pytest.approx(np.mean(seen))


def test_shuffling_keeps_the_values_and_differs_between_splits(splits: dict[str, Split]) -> None:
    split = splits["val"]
    mixed = shuffle(split)
    assert sorted(v["habitat"] for v in mixed) == sorted(v["habitat"] for v in split.metadata)
    assert mixed != list(split.metadata)
    assert mixed != shuffle(replace(split, name="iid"))


def test_the_oracle_is_right_when_any_input_is(systems: Systems, splits: dict[str, Split]) -> None:
    table = predictions(systems, {"iid": splits["iid"]})
    rows = accuracies(table)["iid"]
    assert rows[ORACLE].value >= max(rows[name].value for name in ("FG", "FULL", "FG⊕max FULL"))


def test_the_table_has_n_groups_and_an_interval_for_every_cell(systems: Systems, splits: dict[str, Split]) -> None:
    text = markdown(accuracies(predictions(systems, {"iid": splits["iid"]})), ["iid"])
    assert "n = 240 photographs of 60 groups" in text
    assert text.count("–") == len(systems.answers(splits["iid"])) + 1


def test_metrics_name_split_and_system(systems: Systems, splits: dict[str, Split]) -> None:
    judged = {"iid": splits["iid"]}
    values = metrics(systems, judged, predictions(systems, judged))
    assert values["iid/FG/low"] <= values["iid/FG/value"] <= values["iid/FG/high"]
    assert values["iid/cascade/n"] == 240
    assert values["iid/FULL/ece"] >= 0


@pytest.mark.parametrize("views", [(View.FULL,), (View.BG_S, View.FULL), (View.FG_C, View.BG_S)])
def test_systems_need_a_foreground_view_and_full(views: tuple[View, ...], splits: dict[str, Split]) -> None:
    with pytest.raises(ConfigError, match="has no FG view or no FULL; nothing to fuse"):
        fit_systems(splits, make_recipe(views=views))


def test_two_copies_of_a_photograph_in_one_split_keep_two_rows(tmp_path: Path) -> None:
    rows = [("a", "x", "train"), ("b", "y", "train"), ("a", "x", "train"), ("c", "x", "val"), ("d", "y", "val")]
    columns = ["digest", "label", "split"]
    table = pl.DataFrame(rows, schema=columns, orient="row").with_columns(path="digest", group="digest")
    dataset = Dataset(tmp_path, Card(name="copies"), table)
    logits = table.select("digest", "split").with_columns(
        found=pl.lit(True), logits=pl.Series(np.arange(10, dtype=np.float32).reshape(5, 2))
    )
    logits.write_parquet(tmp_path / "logits.parquet")
    split = load_splits(dataset, {FG: tmp_path / "logits.parquet"}, ())["train"]
    assert len(split.labels) == len(split.found) == len(split.logits[FG]) == 3
