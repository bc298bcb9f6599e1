"""Appendix C.1 on numbers that can be checked by hand, and as a whole experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from l2r2.config import DetectorSettings, ImageSettings, ViewSettings
from l2r2.datasets import Card, Dataset
from l2r2.experiments import run_experiment
from l2r2.experiments.candidates import (
    BG,
    FG,
    THREE,
    TWO,
    Candidates,
    Judged,
    candidate_classes,
    fill_candidates,
    found_counts,
    known_candidates,
    own_logits,
    top_k_answers,
    top_k_results,
)
from l2r2.tracking import Store
from l2r2.types import Region, View
from tests.experiments.drawn import RECIPE, Silent, draw_dataset
from tests.tiny import RED, encode, make_photo

ORDER = np.array([[2, 0, 1], [1, 2, 0]])
FULL = np.array([[5.0, 4.0, 0.0], [3.0, 2.0, 1.0]], np.float32)
OWN = np.array([[1.0, 3.0, 9.0], [4.0, 2.0, 2.5]], np.float32)
BACK = np.array([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]], np.float32)


def test_answers_are_the_class_of_the_best_candidate():
    answers = top_k_answers(ORDER, FULL, OWN, BACK, k=3)
    assert answers[FG].tolist() == [1, 1]  # 9 is of candidate 1 (class 1); 4 of the first (class 1)
    assert answers[BG].tolist() == [2, 2]
    assert answers[TWO].tolist() == [1, 1]  # 6, 7, 9; 7, 4, 3.5
    assert answers[THREE].tolist() == [1, 2]  # 8, 7, 9; 7, 9, 3.5


def test_only_the_first_k_candidates_count():
    assert top_k_answers(ORDER, FULL, OWN, BACK, k=2)[FG].tolist() == [0, 1]
    assert all(answer.tolist() == [2, 1] for answer in top_k_answers(ORDER, FULL, OWN, BACK, k=1).values())


def test_k_is_chosen_on_validation_and_of_equals_the_smallest():
    val = Judged(ORDER, FULL, OWN, None, labels=np.array([0, 1]))  # FG right twice with k = 2 only
    test = Judged(ORDER, FULL, OWN, None, labels=np.array([1, 1]))  # would be right twice with k = 3
    table = top_k_results({"val": val, "test": test}, seed=4)
    fg = table.filter((pl.col("system") == FG) & (pl.col("metric") == "accuracy"))
    assert dict(zip(fg["split"], fg["value"], strict=True)) == {"val": 1.0, "test": 0.5}
    assert set(table["seed"]) == {4}
    assert set(table["system"]) == {FG, TWO}
    same = Judged(ORDER, FULL, np.zeros_like(OWN), None, labels=np.array([2, 1]))
    assert top_k_results({"val": same}, 0).filter(pl.col("system") == FG)["value"].to_list() == [1.0, 1.0]


def test_candidates_are_the_highest_logits_first():
    table = pl.DataFrame({"digest": ["a", "b", "a"], "logits": np.array([[0, 2, 1], [3, 0, 1], [0, 2, 1]], np.float32)})
    assert candidate_classes(table, 2) == {"a": [1, 2], "b": [0, 2]}


class Words:
    """Finds what is called red or blue."""

    key = "words"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def locate_words(self, photo, words):
        self.asked.append(list(words))
        return [Region((52, 36, 108, 84), 0.5) if word in {"red", "blue sky"} else None for word in words]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "p.png").write_bytes(encode(make_photo(RED)))
    table = pl.DataFrame({"path": ["p.png"], "label": ["red"], "split": ["test"], "group": ["g"], "digest": ["d"]})
    names = ("blue", "green", "red")
    return Dataset(tmp_path, Card(name="x", classes=names, words={"blue": "blue sky"}), table)


def test_a_photographs_words_are_located_together_once_and_kept(dataset):
    localizer = Words()
    assert sum(fill_candidates(dataset, localizer, {"d": [2, 0]}, ImageSettings())) == 2
    assert localizer.asked == [["red", "blue sky"]]
    assert sum(fill_candidates(dataset, localizer, {"d": [2, 0, 1]}, ImageSettings())) == 1
    assert localizer.asked == [["red", "blue sky"], ["green"]]
    found = known_candidates(dataset, localizer, {"d": [2, 1, 0]})
    assert [found.regions["d", k] is None for k in (2, 1, 0)] == [False, True, False]
    assert found.best()["d"].box_xyxy_px == (52, 36, 108, 84)
    assert found_counts(found).rows() == [("d", 2, 3)]


def test_own_logits_are_of_the_candidates_class_on_the_candidates_region(dataset):
    class Brightness:
        """Logits: mean red, of no use, mean of the image."""

        def logits(self, images):
            return np.stack([images[:, 0].mean((1, 2)), np.full(len(images), 7.0), images.mean((1, 2, 3))], axis=1)

    settings = ViewSettings(size_px=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), margin=0.0)
    found = Candidates({"d": [0, 1, 2]}, {("d", 0): Region((52, 36, 108, 84), 1.0), ("d", 1): None, ("d", 2): None})
    (row,) = own_logits(dataset, found, View.FG_C, Brightness(), settings, ImageSettings(), 3)
    assert row[0] > 0.85  # the crop is red, padded with grey
    assert row[1] == 7.0
    assert row[2] < 0.35  # nothing found: the whole photograph, mostly dark


def test_a_whole_experiment_without_ground_truth(tmp_path):
    data = draw_dataset(tmp_path / "photos", tmp_path / "data")
    changes = {
        "name": "top-k",
        "views": (View.FULL, View.FG_C, View.BG_B),
        "localizer": DetectorSettings(name="owlv2", model="none", prompt="candidates", candidates=2),
    }
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    localizer = Words()
    done = run_experiment(RECIPE.model_copy(update=changes), data, localizer, store, tmp_path / "work", Silent())
    table = pl.read_parquet(store.download(done.run_id, "tables/results.parquet"))
    rows = table.filter(pl.col("system").is_in([FG, BG, TWO, THREE]) & (pl.col("split") == "test"))
    assert len(rows) == 4 * 2 * 2  # systems, seeds, metrics
    counts = pl.read_parquet(store.download(done.run_id, "tables/candidates.parquet"))
    assert counts["prompts"].to_list() == [3] * 18  # every class prompts each photograph of validation
    assert set(counts["found"]) == {1}  # "red" alone is found here
    assert sum(len(words) for words in localizer.asked) == 54 * 2 + 18 * 3
    again = run_experiment(RECIPE.model_copy(update=changes), data, localizer, store, tmp_path / "work", Silent())
    assert again.reused
