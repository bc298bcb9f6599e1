"""What the deployments of one bundle are calibrated on and compared with; computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from l2r2.bundle import Bundle
from l2r2.datasets import Dataset
from l2r2.errors import DatasetError
from l2r2.images import Photograph, read_photograph
from l2r2.metrics import Labels
from l2r2.recognizer import Recognizer
from l2r2.types import Localizer, Metadata, Photos, Region, Stage
from l2r2.views import normalize, render
from l2r2_export.cascade_parity import Decision, decide_all
from l2r2_export.quantize import Images
from l2r2_export.slices import Photographs, evenly

CALIBRATION_SIZE = 256
"""Photographs of the training split. From 128 to 300 the demo's FG erred a tenth less in INT8, FULL did not."""

VALIDATION_SIZE = 240
"""Photographs of the validation split: one is 0.4 points, just below the half point that a precision may cost."""

BATCH = 8

OnStep = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""


@dataclass(frozen=True)
class Yardstick:
    """Photographs, what the reference makes of them, and how they are labelled.

    Attributes:
        reference: The bundle's own models, as exported.
        calibration_photos, calibration: Of the training split: photographs, and each stage's views of them.
        photos, validation: Of the validation split: photographs, and each stage's views of them.
        opened: Those photographs as a service gets them.
        decisions: The reference's, with metadata.
    """

    reference: Recognizer
    calibration_photos: Photos
    calibration: Mapping[Stage, Sequence[Images]]
    photos: Photos
    validation: Mapping[Stage, Images]
    opened: Sequence[Callable[[], Photograph]]
    metadata: Sequence[Metadata]
    labels: Labels
    groups: np.ndarray
    decisions: Sequence[Decision]


def measure_reference(
    bundle: Bundle,
    photographs: Dataset,
    *,
    threads: int = 2,
    calibration_size: int = CALIBRATION_SIZE,
    validation_size: int = VALIDATION_SIZE,
    on_step: OnStep = lambda _what, _done, _total: None,
) -> Yardstick:
    """Look at both slices with the bundle's reference models.

    Args:
        photographs: The data set that the bundle's models were fitted on.
        threads: Of one inference.
    Raises:
        DatasetError: another data set, or a split is empty.
        BackendMissing, ArtifactError: from the models.
    """
    manifest = bundle.manifest
    if photographs.digest != manifest.dataset_digest:
        raise DatasetError(
            f"{photographs.folder} has digest {photographs.digest}, but {bundle.folder} was fitted on "
            f"{manifest.dataset} {manifest.dataset_digest}; expected the same data set"
        )
    reference = bundle.open(manifest.reference, threads)
    train, validation = photographs.split("train"), photographs.split("val")
    for split, part in (("train", train), ("val", validation)):
        if len(part) == 0:
            raise DatasetError(f"{photographs.folder} has no photographs in {split}; expected some to compare on")
    given, chosen = evenly(len(train), calibration_size), evenly(len(validation), validation_size)
    paths, train_paths = validation.paths(), train.paths()
    metadata = validation.metadata(list(manifest.prior.vocabularies))
    calibration_photos = Photographs([train_paths[i] for i in given], manifest.images)
    photos = Photographs([paths[i] for i in chosen], manifest.images)
    what = "locating calibration photographs"
    regions = _locate(reference.localizer, calibration_photos, lambda done: on_step(what, done, len(given)))
    calibration = {stage: _batches(_views(reference, stage, calibration_photos, regions)) for stage in Stage}
    opened = [partial(read_photograph, paths[i], manifest.images) for i in chosen]
    known = [metadata[i] for i in chosen]
    decisions = decide_all(
        reference, opened, known, lambda done: on_step("deciding as the reference", done, len(chosen))
    )
    regions = [decision.region for decision in decisions]
    return Yardstick(
        reference=reference,
        calibration_photos=calibration_photos,
        calibration=calibration,
        photos=photos,
        validation={stage: _views(reference, stage, photos, regions) for stage in Stage},
        opened=opened,
        metadata=known,
        labels=validation.labels()[chosen],
        groups=validation.groups()[chosen],
        decisions=decisions,
    )


def _locate(localizer: Localizer, photos: Photos, on_photo: Callable[[int], None]) -> list[Region | None]:
    found = []
    for done, photo in enumerate(photos, start=1):
        found += localizer.locate([photo])
        on_photo(done)
    return found


def _views(recognizer: Recognizer, stage: Stage, photos: Photos, regions: Sequence[Region | None]) -> Images:
    view, settings = recognizer.views[stage], recognizer.view_settings
    squares = [render(photo, region, view, settings) for photo, region in zip(photos, regions, strict=True)]
    return normalize(squares, settings)


def _batches(images: Images) -> list[Images]:
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
