"""Regions for a whole data set, from cache where they are known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from l2r2 import weights
from l2r2.config import DetectorSettings, ImageSettings, LocalizerSettings, Recipe, SaliencySettings, TruthSettings
from l2r2.datasets import Dataset
from l2r2.errors import ConfigError, DatasetError
from l2r2.files import sha256
from l2r2.images import read
from l2r2.localization import RegionCache, SaliencyLocalizer
from l2r2.runtimes import OnnxRuntimeSession
from l2r2.types import CandidateLocalizer, InformedLocalizer, Localizer, Region, View

AnyLocalizer = Localizer | InformedLocalizer | CandidateLocalizer
"""Whatever settings may name; one by candidates has no region of its own for a photograph."""

MASKED = frozenset({View.FG_M, View.BG_S})
"""Views that need more than a box."""

WITHOUT_REGIONS = frozenset({View.FULL, View.CENTERCROP})
"""Views that need no localizer."""


def make_localizer(settings: LocalizerSettings, *, masks: bool) -> AnyLocalizer:
    """What the settings name: the packaged U²-Netp, a detector (with SAM), or the data set's ground truth.

    Raises:
        ConfigError: settings that do not fit together.
        BackendMissing, BackendError, ArtifactError: packages or weights that cannot be had.
    """
    if isinstance(settings, TruthSettings):
        from l2r2.localization.truth import TruthLocalizer

        return TruthLocalizer(settings)
    if isinstance(settings, DetectorSettings):
        from l2r2.localization.detecting import make_detecting_localizer

        if masks and settings.segmenter is None:
            raise ConfigError("FG_M and BG_S need masks, which a detector has from SAM; set localizer.segmenter")
        return make_detecting_localizer(settings)
    return make_saliency(settings, masks=masks)


def make_saliency(settings: SaliencySettings, *, masks: bool) -> SaliencyLocalizer:
    """The packaged U²-Netp on ONNX Runtime, one thread an inference.

    Raises:
        ConfigError: another size than the packaged file takes.
    """
    path = weights.fetch(settings.name)
    session = OnnxRuntimeSession(path, threads=1)
    side = next(iter(session.inputs.values()))[-1]
    if isinstance(side, int) and side != settings.size_px:
        raise ConfigError(f"localizer.size_px is {settings.size_px}; the packaged {settings.name} takes {side}")
    return SaliencyLocalizer(session, settings, sha256(path), input_name=next(iter(session.inputs)), masks=masks)


def localizer_of(recipe: Recipe) -> AnyLocalizer | None:
    """The localizer that a recipe asks for, with masks if one of its views needs them; None if none needs a region."""
    if not set(recipe.views) - WITHOUT_REGIONS:
        return None
    return make_localizer(recipe.localizer, masks=bool(MASKED & set(recipe.views)))


def fill_regions(dataset: Dataset, localizer: AnyLocalizer, images: ImageSettings = ImageSettings()) -> Iterator[int]:
    """Locate every photograph that the cache does not know; yields how many each step added.

    Raises:
        ConfigError: the localizer goes by candidates, which only a trained FULL can give.
    """
    if isinstance(localizer, CandidateLocalizer):
        raise ConfigError("a localizer by candidates needs FULL's answers; l2r2 train runs it after FULL")
    jobs = []
    for row, path in zip(dataset.table.iter_rows(named=True), dataset.paths(), strict=True):
        words = "" if row["label"] is None else dataset.words(row["label"])
        known = row | {"words": words, "folder": dataset.card.root or dataset.folder}
        jobs.append((row["digest"], partial(_find, localizer, path, known, images)))
    yield from region_cache(dataset, regions_key(dataset, localizer)).fill(jobs, workers=os.cpu_count() or 1)


def _find(
    localizer: Localizer | InformedLocalizer, path: Path, row: Mapping[str, object], images: ImageSettings
) -> Region | None:
    photo = read(path, images)
    if isinstance(localizer, InformedLocalizer):
        return localizer.locate_known(photo, row)
    return localizer.locate([photo])[0]


def regions_key(dataset: Dataset, localizer: AnyLocalizer) -> str:
    """Changes whenever the regions may: with the localizer, and with what an informed one is told of the data set."""
    if not isinstance(localizer, InformedLocalizer):
        return localizer.key
    told = hashlib.sha256()
    root = dataset.card.root or dataset.folder
    columns = [c for c in ("digest", "label", "box_x0", "box_y0", "box_x1", "box_y1") if c in dataset.table.columns]
    told.update(dataset.table.select(columns).write_csv().encode())
    told.update(json.dumps([dataset.words(name) for name in dataset.class_names]).encode())
    for mask in dataset.table["mask"].drop_nulls() if "mask" in dataset.table.columns else ():
        path = root / mask
        told.update(path.read_bytes() if path.is_file() else b"missing")
    return f"{localizer.key}-{told.hexdigest()[:12]}"


def known_regions(dataset: Dataset, localizer_key: str) -> Mapping[str, Region | None]:
    """Digest → region of every photograph.

    Raises:
        DatasetError: some were not located yet.
    """
    regions = region_cache(dataset, localizer_key).load()
    missing = sum(digest not in regions for digest in dataset.table["digest"])
    if missing:
        raise DatasetError(
            f"{missing} of {len(dataset)} photographs were not located yet; run: l2r2 localize {dataset.folder}"
        )
    return regions


def region_cache(dataset: Dataset, localizer_key: str) -> RegionCache:
    """Where a data set's regions are kept: `regions/` beside its table."""
    return RegionCache(dataset.folder / "regions", localizer_key)
