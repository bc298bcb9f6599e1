"""A vision-language model through a whole experiment, and as a bundle's classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from l2r2.config import Recipe, VlmSettings
from l2r2.datasets import Card, Dataset
from l2r2.errors import ConfigError
from l2r2.experiments import load_experiment, run_experiment
from l2r2.tracking import Store
from l2r2.types import Stage, View
from tests.experiments.drawn import MiddleLocalizer, Silent, draw_dataset
from tests.training.tiny_vlm import save_open_clip

VIEWS = (View.FULL, View.FG_C, View.BG_B, View.CENTERCROP)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> VlmSettings:
    return save_open_clip(tmp_path_factory.mktemp("vlm"), "tiny-clip")[0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw_dataset(tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2R2_CACHE", str(tmp_path / "cache"))


def recipe(settings: VlmSettings) -> Recipe:
    return Recipe(name="zero-shot", views=VIEWS, vlm=settings)


def results(store: Store, run_id: str) -> pl.DataFrame:
    return pl.read_parquet(store.download(run_id, "tables/results.parquet"))


def test_test_sets_alone_are_judged_by_the_untrained_fusion(
    settings: VlmSettings, dataset: Dataset, tmp_path: Path
) -> None:
    card = Card(name="tests-only", root=dataset.card.root, classes=("blue", "green", "red"))
    table = dataset.table.filter(pl.col("split") == "test")
    tests = Dataset(tmp_path, card, table)
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = run_experiment(recipe(settings), tests, MiddleLocalizer(), store, tmp_path / "work", Silent())
    found = results(store, done.run_id)
    assert set(found["split"]) == {"test"}
    fused = {"FG_C⊕max FULL", "FG_C⊕max BG_B", "FG_C⊕* FULL", "FG_C⊕* BG_B"}
    assert set(found["system"]) == {*map(str, VIEWS), *fused, "Oracle FG_C FULL", "Oracle FG_C BG_B"}
    # ⊕max by hand, from the logits that the runs keep.
    logits = {}
    for view in ("FULL", "FG_C"):
        child = store.finished("zero-shot", {"kind": "classifier", "view": view})
        rows = pl.read_parquet(store.download(child, "logits.parquet")).sort("digest")
        logits[view], labels = rows["logits"].to_numpy().astype(np.float64), rows["label"].to_numpy()
    probs = {v: np.exp(z) / np.exp(z).sum(1, keepdims=True) for v, z in logits.items()}
    surer = probs["FG_C"].max(1) >= probs["FULL"].max(1)
    right = np.where(surer, probs["FG_C"].argmax(1), probs["FULL"].argmax(1)) == labels
    row = found.filter((pl.col("system") == "FG_C⊕max FULL") & (pl.col("metric") == "accuracy"))
    assert row["value"].item() == pytest.approx(right.mean())
    page = store.download(done.run_id, "report.html").read_text(encoding="utf-8")
    assert "FG_C⊕max FULL" in page
    assert "Beyond the paper" not in page  # nothing was fitted
    again = run_experiment(recipe(settings), tests, MiddleLocalizer(), store, tmp_path / "work", Silent())
    assert again == replace(done, reused=True)


def test_a_bundle_of_it_needs_no_text_tower(settings: VlmSettings, dataset: Dataset, tmp_path: Path) -> None:
    from l2r2_export.export import _network

    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = run_experiment(recipe(settings), dataset, MiddleLocalizer(), store, tmp_path / "work", Silent())
    experiment = load_experiment(store, done.run_id)
    assert experiment.context.views == {Stage.FG: View.FG_C, Stage.FULL: View.FULL}
    assert experiment.context.view.size_px == 32
    network = _network(experiment, Stage.FG)
    assert not any("text" in name or "token" in name for name, _ in network.named_parameters())
    assert dict(network.named_buffers())["prototypes"].shape[0] == 3
    assert "FG_C⊕R FULL" in set(results(store, done.run_id)["system"])  # with a validation split all is fitted


def test_test_sets_alone_train_nothing(dataset: Dataset, tmp_path: Path) -> None:
    card = Card(name="tests-only", root=dataset.card.root, classes=("blue", "green", "red"))
    tests = Dataset(tmp_path, card, dataset.table.filter(pl.col("split") == "test"))
    with pytest.raises(ConfigError, match=r"has test sets only; nothing to train on, take a recipe with \[vlm\]"):
        run_experiment(
            Recipe(name="x"), tests, MiddleLocalizer(), Store(f"sqlite:///{tmp_path / 'm.db'}"), tmp_path, Silent()
        )


def test_the_photographs_are_as_drawn(dataset: Dataset) -> None:
    with Image.open(dataset.paths()[0]) as image:
        assert image.size == (160, 120)


def test_it_is_exported_compared_and_served(settings: VlmSettings, dataset: Dataset, tmp_path: Path) -> None:
    from l2r2_export.export import export_experiment

    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    done = run_experiment(recipe(settings), dataset, MiddleLocalizer(), store, tmp_path / "work", Silent())
    bundle = export_experiment(load_experiment(store, done.run_id), dataset, tmp_path / "bundle", slice_size=3)
    assert bundle.manifest.model_names == dict.fromkeys(Stage, settings.model)
    assert bundle.manifest.reference.parity["decisions"]["answer_agreement"] == 1.0
    photo = np.asarray(Image.open(dataset.paths()[0]).convert("RGB"))
    (answer,) = bundle.recognizer().recognize([photo])
    assert answer.answer.name in dataset.class_names
    assert answer.prediction_set is not None
