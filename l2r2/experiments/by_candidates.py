"""An experiment without ground truth, in its order: FULL first, its candidates' regions, then FG and BG."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from l2r2.classification.timm_model import TorchClassifier, create_network, load_network
from l2r2.config import DetectorSettings
from l2r2.errors import ConfigError
from l2r2.experiments.candidates import (
    ALL_CLASSES,
    Candidates,
    Judged,
    candidate_classes,
    fill_candidates,
    found_counts,
    known_candidates,
    own_logits,
    top_k_results,
)
from l2r2.experiments.children import LOGITS, WEIGHTS, Workshop
from l2r2.experiments.pairs import background, foreground
from l2r2.experiments.report import RESULTS
from l2r2.experiments.splits import CROSSFIT, Member, Split
from l2r2.files import write_table
from l2r2.tracking import Run
from l2r2.types import CandidateLocalizer, View

COUNTS = "tables/candidates.parquet"


def by_candidates(shop: Workshop, localizer: CandidateLocalizer) -> tuple[Workshop, Candidates, dict[Member, str]]:
    """Train FULL, let its likeliest classes prompt the detector; FG and BG then train on the region of the likeliest.

    Returns:
        The workshop with those regions, all candidates, and FULL's runs.
    Raises:
        ConfigError: the recipe has no FULL, or no FG view.
    """
    recipe, dataset = shop.recipe, shop.dataset
    settings = recipe.localizer
    if not isinstance(settings, DetectorSettings) or View.FULL not in recipe.views or not foreground(recipe.views):
        raise ConfigError(f'recipe {recipe.name}: localizer.prompt = "candidates" needs the views FULL and an FG view')
    children = shop.train((View.FULL,))
    logits = pl.read_parquet(shop.store.download(children[View.FULL, 0], LOGITS))
    classes = candidate_classes(logits, settings.candidates)
    if len(dataset.class_names) <= ALL_CLASSES:
        classes |= candidate_classes(logits.filter(pl.col("split") == "val"), len(dataset.class_names))
    shop.progress.stage("locating candidates", sum(map(len, classes.values())))
    done = 0
    for count in fill_candidates(dataset, localizer, classes, recipe.images, os.cpu_count() or 1):
        done += count
        shop.progress.step(done)
    candidates = known_candidates(dataset, localizer, classes)
    key = f"{localizer.key}-{children[View.FULL, 0][:8]}"
    return replace(shop, regions=candidates.best(), regions_key=key), candidates, children


def report_candidates(
    run: Run,
    folder: Path,
    shop: Workshop,
    candidates: Candidates,
    children: Mapping[Member, str],
    splits: Mapping[str, Split],
) -> None:
    """Judge appendix C.1's systems and add them to the run's results; keep how many prompts found something."""
    progress, seeds = shop.progress, len(shop.recipe.train.seeds)
    progress.stage("judging candidates", seeds)
    frames = [pl.read_parquet(folder / RESULTS)]
    for seed in range(seeds):
        judged = {
            name: _judge(shop, candidates, children, split, seed)
            for name, split in splits.items()
            if name not in {"train", CROSSFIT}
        }
        frames.append(top_k_results(judged, seed))
        progress.step(seed + 1)
    write_table(folder / RESULTS, pl.concat(frames))
    write_table(folder / COUNTS, found_counts(_of(candidates, splits["val"])))
    for name in (RESULTS, COUNTS):
        run.file(folder / name, "tables")


def _judge(shop: Workshop, candidates: Candidates, children: Mapping[Member, str], split: Split, seed: int) -> Judged:
    settings = shop.recipe.localizer
    assert isinstance(settings, DetectorSettings)
    count = min(settings.candidates, len(shop.dataset.class_names))
    part = shop.dataset.split(split.name)
    order = np.array([candidates.classes[digest][:count] for digest in split.digests])
    fg_view, bg_view = foreground(shop.recipe.views), background(shop.recipe.views)
    assert fg_view is not None

    def own(view: View) -> np.ndarray:
        classes, size = len(shop.dataset.class_names), shop.settings.size_px
        network = create_network(shop.recipe.train.model, classes, size_px=size)
        load_network(network, shop.store.download(children[view, seed], WEIGHTS))
        classifier = TorchClassifier(network)
        return own_logits(part, candidates, view, classifier, shop.settings, shop.recipe.images, count)

    return Judged(
        order=order,
        full=np.take_along_axis(split.logits[View.FULL, seed], order, axis=1),
        fg=own(fg_view),
        bg=None if bg_view is None else own(bg_view),
        labels=split.labels,
    )


def _of(candidates: Candidates, split: Split) -> Candidates:
    return replace(candidates, classes={digest: candidates.classes[digest] for digest in split.digests})
