"""No ground truth anywhere: FULL's likeliest classes prompt the detector (the paper's appendix C.1, tables 7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import polars as pl
from jaxtyping import Float32, Int

from l2r2.config import ImageSettings, ViewSettings
from l2r2.datasets import Dataset
from l2r2.errors import DatasetError
from l2r2.experiments.localizing import region_cache
from l2r2.experiments.results import SCHEMA
from l2r2.images import read
from l2r2.metrics import macro_accuracy
from l2r2.types import CandidateLocalizer, Classifier, Region, View
from l2r2.views import normalize, render

FG, BG, TWO, THREE = "top-k FG", "top-k BG", "top-k FULL⊕FG", "top-k FULL⊕FG⊕BG"
"""Systems of appendix C.1: each candidate's own logit, and averages of two and of three."""

ALL_CLASSES = 30
"""Up to so many classes every one of them prompts each photograph of validation, for the paper's figure 11."""

BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What the detector made of each candidate.

    Attributes:
        classes: Digest → classes, FULL's likeliest first.
        regions: Digest and class → region or None.
    """

    classes: Mapping[str, Sequence[int]]
    regions: Mapping[tuple[str, int], Region | None]

    def best(self) -> dict[str, Region | None]:
        """The region of the likeliest class: what FG and BG train on."""
        return {digest: self.regions[digest, classes[0]] for digest, classes in self.classes.items()}


def candidate_classes(logits: pl.DataFrame, count: int) -> dict[str, list[int]]:
    """Digest → the `count` classes with the highest logits, highest first."""
    rows = logits.unique("digest", maintain_order=True)
    order = np.argsort(-rows["logits"].to_numpy(), axis=1, kind="stable")[:, :count]
    return dict(zip(rows["digest"], order.tolist(), strict=True))


def fill_candidates(
    dataset: Dataset,
    localizer: CandidateLocalizer,
    classes: Mapping[str, Sequence[int]],
    images: ImageSettings,
    workers: int = 1,
) -> Iterator[int]:
    """Locate what the cache does not know; yields how many regions each step added."""
    cache = region_cache(dataset, localizer.key)
    known = cache.load().keys()
    jobs: list[tuple[str, Callable[[], Region | None]]] = []
    for digest, path in zip(dataset.table["digest"], dataset.paths(), strict=True):
        todo = [k for k in classes.get(digest, ()) if _place(dataset, digest, k) not in known]
        if todo:
            words = [dataset.words(dataset.class_names[k]) for k in todo]
            together = _Together(partial(_locate, localizer, path, words, images), len(todo))
            jobs += [(_place(dataset, digest, k), partial(together.take, i)) for i, k in enumerate(todo)]
    yield from cache.fill(jobs, workers)


def known_candidates(
    dataset: Dataset, localizer: CandidateLocalizer, classes: Mapping[str, Sequence[int]]
) -> Candidates:
    """Read back what `fill_candidates` located.

    Raises:
        DatasetError: some is missing.
    """
    cached = region_cache(dataset, localizer.key).load()
    places = {(digest, k): _place(dataset, digest, k) for digest, chosen in classes.items() for k in chosen}
    missing = sum(place not in cached for place in places.values())
    if missing:
        raise DatasetError(f"{missing} of {len(places)} candidates were not located yet; run the experiment again")
    return Candidates(classes, {key: cached[place] for key, place in places.items()})


def found_counts(candidates: Candidates) -> pl.DataFrame:
    """How many of a photograph's prompts found something: digest, found, prompts."""
    rows = [
        (digest, sum(candidates.regions[digest, k] is not None for k in classes), len(classes))
        for digest, classes in candidates.classes.items()
    ]
    return pl.DataFrame(rows, schema={"digest": pl.String, "found": pl.Int64, "prompts": pl.Int64}, orient="row")


def own_logits(
    part: Dataset,
    candidates: Candidates,
    view: View,
    classifier: Classifier,
    settings: ViewSettings,
    images: ImageSettings,
    count: int,
) -> Float32[np.ndarray, "n count"]:
    """For each candidate, the logit of its own class on its own region (equation 5); the whole photograph where the
    prompt found nothing.
    """
    rows = []
    for digest, path in zip(part.table["digest"], part.paths(), strict=True):
        photo, classes = read(path, images), candidates.classes[digest][:count]
        squares = [render(photo, candidates.regions[digest, k], view, settings) for k in classes]
        logits = classifier.logits(normalize(squares, settings))
        rows.append([logits[i, k] for i, k in enumerate(classes)])
    return np.array(rows, dtype=np.float32)


def top_k_answers(
    order: Int[np.ndarray, "n count"],
    full: Float32[np.ndarray, "n count"],
    fg: Float32[np.ndarray, "n count"],
    bg: Float32[np.ndarray, "n count"] | None,
    k: int,
) -> dict[str, Int[np.ndarray, " n"]]:
    """The classes that each system answers, of the first k candidates.

    Args:
        order: Classes of the candidates, likeliest first.
        full, fg, bg: Each candidate's own logit.
    """
    scores = {FG: fg, TWO: full + fg}
    if bg is not None:
        scores |= {BG: bg, THREE: full + fg + bg}
    best = {name: values[:, :k].argmax(axis=1) for name, values in scores.items()}
    return {name: order[np.arange(len(order)), place] for name, place in best.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One split of one seed: what `top_k_answers` takes, and the truth."""

    order: Int[np.ndarray, "n count"]
    full: Float32[np.ndarray, "n count"]
    fg: Float32[np.ndarray, "n count"]
    bg: Float32[np.ndarray, "n count"] | None
    labels: Int[np.ndarray, " n"]

    def right(self, k: int) -> dict[str, np.ndarray]:
        """System → where it is right with k candidates."""
        answers = top_k_answers(self.order, self.full, self.fg, self.bg, k)
        return {name: answer == self.labels for name, answer in answers.items()}


def top_k_results(judged: Mapping[str, Judged], seed: int) -> pl.DataFrame:
    """Rows as `l2r2.experiments.results.results` has them; k is each system's most accurate on validation, of equals
    the smallest.
    """
    val = judged["val"]
    counts = range(1, val.order.shape[1] + 1)
    by_k = {k: {name: right.mean() for name, right in val.right(k).items()} for k in counts}
    chosen = {name: max(counts, key=lambda k: (by_k[k][name], -k)) for name in by_k[1]}
    rows = []
    for split, one in judged.items():
        n = len(one.labels)
        for name, k in chosen.items():
            right = one.right(k)[name]
            rows.append((split, name, seed, "accuracy", float(right.mean()), n))
            rows.append((split, name, seed, "macro", macro_accuracy(right, one.labels), n))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@dataclass(slots=True)
class _Together:
    """Several regions of one photograph, found in one go; each is given away once and not kept."""

    find: Callable[[], list[Region | None]]
    count: int
    _found: list[Region | None] | None = None
    _turn: Lock = field(default_factory=Lock)

    def take(self, i: int) -> Region | None:
        with self._turn:
            if self._found is None:
                self._found = self.find()
            region, self._found[i] = self._found[i], None
        return region


def _locate(
    localizer: CandidateLocalizer, path: Path, words: Sequence[str], images: ImageSettings
) -> list[Region | None]:
    return localizer.locate_words(read(path, images), words)


def _place(dataset: Dataset, digest: str, k: int) -> str:
    """A region's name in the cache: it depends on the photograph and the words alone."""
    return f"{digest} {dataset.words(dataset.class_names[k])}"
