"""Sheets show the photographs on which systems disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from l2r2.experiments.sheets import choices, sheet
from l2r2.experiments.splits import Split
from l2r2.logspace import LogProbs, log_normalize
from l2r2.types import Region, View
from tests.experiments.drawn import draw_dataset


def belief(answers: list[int]) -> LogProbs:
    return log_normalize(4.0 * np.eye(3)[answers])


LABELS = np.array([0, 0, 1, 1, 2, 2])
ANSWERS = {
    "FG": belief([0, 0, 1, 2, 2, 2]),
    "FULL": belief([1, 0, 0, 1, 1, 2]),
    View.BG_S: belief([1, 1, 1, 1, 2, 0]),
    "cascade": belief([0, 0, 1, 2, 2, 2]),
    "cascade+metadata": belief([0, 1, 1, 1, 2, 2]),
}


def split(digests: list[str]) -> Split:
    nothing = np.zeros((6, 3), np.float32)
    logits = {(View.FG_C, 0): nothing, (View.FULL, 0): nothing}
    known = [{"habitat": "shore"}] + [{}] * 5
    return Split("test", digests, LABELS, np.arange(6).astype(str), np.ones(6, bool), known, logits)


def test_photographs_are_chosen_by_who_is_right() -> None:
    chosen = {name: np.flatnonzero(where).tolist() for name, where in choices(ANSWERS, split(["d"] * 6)).items()}
    assert chosen == {"only-fg": [0], "only-full": [3], "fg-and-bg": [2, 4], "flipped-by-prior": [1, 3]}


def test_without_a_background_view_or_metadata_their_sheets_are_left_out() -> None:
    few = {name: ANSWERS[name] for name in ("FG", "FULL")}
    chosen = {name: np.flatnonzero(where).tolist() for name, where in choices(few, split(["d"] * 6)).items()}
    assert chosen == {"only-fg": [0, 2, 4], "only-full": [3]}


def test_a_sheet_shows_the_chosen_and_none_makes_no_file(tmp_path: Path) -> None:
    dataset = draw_dataset(tmp_path / "photos", tmp_path / "data")
    part = dataset.split("test")
    rows = [part.table["label"].to_list().index(name) for name in dataset.class_names for _ in range(2)]
    digests = [part.table["digest"][i] for i in rows]
    shown = split(digests)
    regions = dict.fromkeys(digests, Region((52, 36, 108, 84), 1.0))
    chosen = choices(ANSWERS, shown)["flipped-by-prior"]
    sheet(dataset, regions, ANSWERS, shown, chosen, "flipped-by-prior", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 80)
    assert yellow.sum() > 100  # the boxes
    sheet(dataset, regions, ANSWERS, shown, np.zeros(6, bool), "only-fg", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
