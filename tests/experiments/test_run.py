"""A whole experiment on small drawn photographs: tracked, reused, compared, judged."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from l2r2.cli import build
from l2r2.config import SafetySettings, SaliencySettings
from l2r2.datasets import Dataset
from l2r2.errors import ArtifactError, ConfigError, DatasetError, InputError
from l2r2.experiments import load_experiment, run_experiment
from l2r2.experiments.compare import compare_runs
from l2r2.experiments.evaluate import evaluate_bundle
from l2r2.experiments.localizing import fill_regions, make_localizer
from l2r2.experiments.run import Done
from l2r2.tracking import Store
from l2r2.types import Stage, View
from tests.experiments.drawn import RECIPE, MiddleLocalizer, Silent, draw_dataset
from tests.tiny import CLASSES, make_tiny_bundle


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    made = draw_dataset(tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("data"))
    assert sum(fill_regions(made, MiddleLocalizer())) == 72
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def store(place: Path) -> Store:
    return Store(f"sqlite:///{place / 'mlflow.db'}")


@pytest.fixture(scope="module")
def done(dataset: Dataset, store: Store, place: Path) -> Done:
    return run_experiment(RECIPE, dataset, MiddleLocalizer(), store, place / "work", Silent())


def test_a_finished_experiment_is_used_again(done: Done, dataset: Dataset, store: Store, place: Path) -> None:
    again = run_experiment(RECIPE, dataset, MiddleLocalizer(), store, place / "work", Silent())
    assert again == Done(done.run_id, reused=True)


def test_another_gate_trains_no_classifier_again(done: Done, dataset: Dataset, store: Store, place: Path) -> None:
    changed = RECIPE.model_copy(update={"gate": RECIPE.gate.model_copy(update={"threshold": 0.9})})
    other = run_experiment(changed, dataset, MiddleLocalizer(), store, place / "work", Silent())
    assert not other.reused
    first, second = load_experiment(store, done.run_id), load_experiment(store, other.run_id)
    assert first.context.children == second.context.children
    assert second.policy.threshold == 0.9


def test_the_parent_keeps_all_that_rebuilds_the_result(done: Done, store: Store, dataset: Dataset) -> None:
    experiment = load_experiment(store, done.run_id)
    assert experiment.recipe == RECIPE
    assert experiment.context.class_names == dataset.class_names
    assert experiment.context.dataset_digest == dataset.digest
    assert all(path.is_file() for path in experiment.weights.values())
    tags = store.tags_of(done.run_id)
    assert {"version.torch", "python", "best_fusion", "key"} <= set(tags)


def test_children_have_metrics_and_the_logits_of_every_split(done: Done, store: Store) -> None:
    child = load_experiment(store, done.run_id).context.children[Stage.FG]
    assert store.tags_of(child)["mlflow.parentRunId"] == done.run_id
    assert {"train_loss", "val_loss", "best_val_accuracy", "best_epoch"} <= set(store.metrics_of(child))
    table = pl.read_parquet(store.download(child, "logits.parquet"))
    assert set(table["split"]) == {"train", "val", "test"}
    assert table["logits"].to_numpy().shape == (72, 3)


def test_figures_and_tables_are_kept(done: Done, store: Store) -> None:
    names = {path.name for path in store.download(done.run_id, "figures").iterdir()}
    assert {"reliability.png", "cost-curve.png", "confusion-test.png", "wl-weights.png"} <= names
    for name in names:
        with Image.open(store.download(done.run_id, f"figures/{name}")) as image:
            assert min(image.size) > 200
    assert "n = 18 photographs" in store.download(done.run_id, "tables/accuracy.md").read_text(encoding="utf-8")


def test_the_page_holds_tables_and_pictures_and_needs_nothing_else(done: Done, store: Store) -> None:
    page = store.download(done.run_id, "report.html").read_text(encoding="utf-8")
    for words in ("<h1>tiny</h1>", "n 18, 18 groups", "FG_C⊕* FULL", "uncapped / capped", "prediction sets"):
        assert words in page
    pictures = {path.stem for path in store.download(done.run_id, "figures").iterdir()}
    assert all(f'alt="{name}"' in page for name in pictures)
    assert "http" not in page.replace("http-equiv", "")


def test_two_seeds_are_compared_photograph_by_photograph(done: Done, store: Store) -> None:
    child = load_experiment(store, done.run_id).context.children
    found = {d.split: d for d in compare_runs(store, child[Stage.FG], child[Stage.FULL])}
    test = found["test"]
    assert test.difference.n == 18
    assert test.difference.low <= test.difference.value <= test.difference.high
    assert test.difference.value == pytest.approx(test.second_accuracy - test.first_accuracy)


def test_a_run_against_itself_differs_nowhere(done: Done, store: Store) -> None:
    for difference in compare_runs(store, done.run_id, done.run_id):
        assert difference.first == difference.second
        assert (difference.difference.low, difference.difference.value, difference.difference.high) == (0, 0, 0)


def test_comparing_an_unknown_run_says_so(store: Store, done: Done) -> None:
    with pytest.raises(InputError, match="there is no run 'nonsense'"):
        compare_runs(store, done.run_id, "nonsense")


def test_a_run_that_is_no_experiment_is_refused(store: Store) -> None:
    with store.run("tiny", "other", {}) as run:
        pass
    with pytest.raises(ArtifactError, match=r"has no artifact 'recipe\.json'"):
        load_experiment(store, run.id)


def test_results_hold_every_system_seed_and_metric(done: Done, store: Store) -> None:
    table = pl.read_parquet(store.download(done.run_id, "tables/results.parquet"))
    assert set(table["split"]) == {"train", "val", "test"}
    assert {"FULL", "FG_C", "FG_C⊕max FULL", "FG_C⊕* FULL", "Oracle FG_C FULL", "FULL×2", "FG_C×2"} <= set(
        table["system"]
    )
    base = table.filter((pl.col("system") == "FULL") & (pl.col("split") == "test") & (pl.col("metric") == "accuracy"))
    assert base["seed"].sort().to_list() == [0, 1]
    child = load_experiment(store, done.run_id).context.children[Stage.FULL]
    logits = pl.read_parquet(store.download(child, "logits.parquet")).filter(pl.col("split") == "test")
    right = logits["logits"].to_numpy().argmax(axis=1) == logits["label"].to_numpy()
    assert base.filter(pl.col("seed") == 0)["value"].item() == pytest.approx(right.mean())
    weights = pl.read_parquet(store.download(done.run_id, "tables/wl_weights.parquet"))
    assert weights["class"].to_list() == sorted(CLASSES)
    per_class = pl.read_parquet(store.download(done.run_id, "tables/per_class.parquet"))
    assert per_class.filter((pl.col("system") == "FULL") & (pl.col("split") == "test"))["n"].to_list() == [6, 6, 6]


def test_what_is_better_than_the_paper_is_measured(done: Done, store: Store) -> None:
    text = store.download(done.run_id, "tables/better.md").read_text(encoding="utf-8")
    for words in ("one standard error", "rule risk", "a set of 95 % coverage", "no veto / veto", "uncapped / capped"):
        assert words in text


def test_views_without_a_foreground_are_trained_and_judged_alone(dataset: Dataset, store: Store, place: Path) -> None:
    recipe = RECIPE.model_copy(update={"name": "full-only", "views": (View.FULL,)})
    run = run_experiment(recipe, dataset, None, store, place / "work", Silent()).run_id
    table = pl.read_parquet(store.download(run, "tables/results.parquet"))
    assert set(table["system"]) == {"FULL"}
    with pytest.raises(ArtifactError, match=r"has no artifact 'recipe\.json'"):
        load_experiment(store, run)


def test_every_view_and_cross_fitting_in_one_experiment(dataset: Dataset, store: Store, place: Path) -> None:
    changes = {
        "name": "wide",
        "views": (View.FULL, View.FG_C, View.BG_B, View.CENTERCROP),
        "train": RECIPE.train.model_copy(update={"seeds": (0,), "epochs": 1}),
        "fusion": RECIPE.fusion.model_copy(update={"fit_on": "crossfit", "folds": 2}),
        "gate": RECIPE.gate.model_copy(update={"rule": "risk"}),
    }
    run = run_experiment(RECIPE.model_copy(update=changes), dataset, MiddleLocalizer(), store, place / "work", Silent())
    systems = set(pl.read_parquet(store.download(run.run_id, "tables/results.parquet"))["system"])
    assert {"BG_B", "CENTERCROP", "FG_C⊕WL BG_B", "FG_C⊕WL FULL"} <= systems
    assert "cross-fitted" in store.download(run.run_id, "tables/better.md").read_text(encoding="utf-8")
    folds = store.finished("wide", {"kind": "crossfit", "view": "FG_C"})
    table = pl.read_parquet(store.download(folds, "logits.parquet"))
    train = dataset.table.filter(pl.col("split") == "train")
    assert sorted(table["digest"]) == sorted(train["digest"])


def test_a_hazard_that_is_no_class_is_refused(dataset: Dataset, store: Store, place: Path) -> None:
    recipe = RECIPE.model_copy(update={"safety": SafetySettings(hazardous=("amanita",))})
    with pytest.raises(ConfigError, match=r"safety\.hazardous names 'amanita', which is no class of"):
        run_experiment(recipe, dataset, MiddleLocalizer(), store, place / "work", Silent())


def test_a_view_that_needs_a_region_needs_a_localizer(dataset: Dataset, store: Store, place: Path) -> None:
    with pytest.raises(ConfigError, match="has views that need a region and there is no localizer"):
        run_experiment(RECIPE, dataset, None, store, place / "work", Silent())


def test_a_bundle_is_judged_by_its_own_recognizer(dataset: Dataset, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle", class_names=("blue", "green", "red"))
    result = evaluate_bundle(bundle, dataset, Silent(), timed=3)
    assert result.sets["test"]["cascade"].n == 18
    assert 0 <= result.skipped_full["test"] <= 1
    assert {"decode", "locate", "classify FG", "fuse"} <= set(result.stage_ms)
    result.save(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert set(saved["sets"]["test"]["cascade"]) == {"accuracy", "low", "high", "n", "groups"}
    assert saved["bundle"] == str(bundle.folder)


def test_a_bundle_of_other_classes_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle", class_names=("x", "y", "z"))
    with pytest.raises(DatasetError, match="expected the same"):
        evaluate_bundle(bundle, dataset, Silent())


def test_the_command_line_prints_the_comparison(done: Done, store: Store) -> None:
    shown = CliRunner().invoke(build(), ["compare", done.run_id, done.run_id, "--tracking-uri", store.uri, "--json"])
    assert shown.exit_code == 0, shown.output
    assert {row["split"] for row in json.loads(shown.stdout)} == {"val", "test"}


def test_a_localizer_size_that_the_packaged_file_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"localizer\.size_px is 256; the packaged u2netp takes 320"):
        make_localizer(SaliencySettings(size_px=256), masks=False)


def test_looking_for_an_unknown_experiment_makes_none(store: Store) -> None:
    assert store.finished("typo", {"kind": "experiment"}) is None
    assert store.client.get_experiment_by_name("typo") is None
