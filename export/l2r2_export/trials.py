"""How a model in another precision is judged: a classifier by its logits, a localizer by its regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from l2r2.classification import SessionClassifier
from l2r2.config import SaliencySettings
from l2r2.errors import BackendError, ParityError
from l2r2.localization import SaliencyLocalizer
from l2r2.localization.saliency import region_of
from l2r2.metrics import Labels
from l2r2.runtimes import RuntimeSession
from l2r2.types import Classifier, Logits, Photos, Region
from l2r2_export.precision_parity import Figures, Limits, compare_precision, compare_regions
from l2r2_export.quantize import Images

BATCH = 8
"""Photographs at once."""

FEW = 64
"""Calibration photographs that layers are ordered on."""

Opened = Callable[[Path], RuntimeSession]
"""A file → a session on the runtime that it is for."""


class ClassifierTrial:
    """A classifier against the one in FP32. Fulfils `sensitivity.Trial`."""

    def __init__(
        self,
        opened: Opened,
        reference: Classifier,
        classes: int,
        calibration: Sequence[Images],
        validation: Images,
        labels: Labels,
        groups: np.ndarray,
        limits: Limits,
    ) -> None:
        """Ask the reference once.

        Args:
            calibration: Batches of the training split, that the layers are ordered on.
            validation, labels, groups: n ≥ 1 photographs that the gate looks at.
        """
        self._opened, self._classes, self.limits = opened, classes, limits
        few = np.concatenate(calibration) if calibration else validation[:0]
        self._few = few[:: max(1, -(-len(few) // FEW))]
        self._wanted = _in_batches(reference, self._few)
        self._validation, self._labels, self._groups = validation, labels, groups
        self._reference = _in_batches(reference, validation)

    def damage(self, file: Path) -> float:
        """Noise over signal of the logits: ‖z' - z‖² / ‖z - z̄‖², z̄ the mean of each class."""
        got = _in_batches(self._classifier(file), self._few).astype(np.float64)
        signal = np.square(self._wanted - self._wanted.mean(axis=0)).sum()
        return float(np.square(got - self._wanted).sum() / max(float(signal), 1e-12))

    def figures(self, file: Path) -> Figures:
        """The fields of `LogitParity`."""
        classifier = self._classifier(file)
        try:
            logits = _in_batches(classifier, self._validation)
        except BackendError as error:  # it opened, and answers nothing that can be compared
            raise ParityError(f"{file.name}: {error}; keep more layers in FP32") from error
        return compare_precision(self._reference, logits, self._labels, self._groups, file.name)

    def _classifier(self, file: Path) -> Classifier:
        session = self._opened(file)
        return SessionClassifier(session, next(iter(session.inputs)), self._classes)


def _in_batches(classifier: Classifier, images: Images) -> Logits:
    if len(images) == 0:
        return classifier.logits(images)
    return np.concatenate([classifier.logits(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


class SaliencyTrial:
    """A saliency localizer against the one in FP32. Fulfils `sensitivity.Trial`."""

    def __init__(
        self,
        opened: Opened,
        reference: SaliencyLocalizer,
        settings: SaliencySettings,
        source: Path,
        calibration: Sequence[Images],
        validation: Photos,
        limits: Limits,
    ) -> None:
        """Ask the reference once, and shrink each photograph once.

        Args:
            settings: Its size may be smaller than the reference's.
            source: The FP32 file; damage is told against it, at this size.
            calibration: Of the network's input, that the layers are ordered on.
            validation: n ≥ 1 photographs that the gate looks at.
        """
        self._opened, self._settings, self.limits, self._source = opened, settings, limits, source
        self._few = list(calibration)[:: max(1, -(-len(calibration) // (FEW // BATCH)))]
        self._wanted: list[np.ndarray] = []
        self._sizes, self._inputs, self._reference = list[tuple[int, int]](), list[Images](), list[Region | None]()
        for photo in validation:
            self._sizes.append((photo.shape[1], photo.shape[0]))
            self._inputs.append(network_inputs([photo], settings))
            self._reference += reference.locate([photo])

    def damage(self, file: Path) -> float:
        """Mean absolute difference of the saliency, [0, 1]."""
        if not self._wanted:
            self._wanted = [_saliency(self._opened(self._source), images) for images in self._few]
        session = self._opened(file)
        pairs = zip(self._few, self._wanted, strict=True)
        return float(np.mean([np.abs(_saliency(session, images) - wanted).mean() for images, wanted in pairs]))

    def figures(self, file: Path) -> Figures:
        """The fields of `RegionParity`."""
        session = self._opened(file)
        found = []
        for images, (width, height) in zip(self._inputs, self._sizes, strict=True):
            saliency = _saliency(session, images)
            if not np.isfinite(saliency).all():
                raise ParityError(f"{file.name}: saliency that is not finite; keep more layers in FP32")
            found.append(region_of(saliency[0], width, height, self._settings))
        return compare_regions(self._reference, found, file.name)


def network_inputs(photos: Photos, settings: SaliencySettings) -> Images:
    """What a saliency network of that size is fed for each photograph."""
    fed = _Fed()
    localizer = SaliencyLocalizer(fed, settings, "", input_name="images")
    for photo in photos:
        localizer.saliency([photo])
    return (
        np.concatenate(fed.images) if fed.images else np.empty((0, 3, settings.size_px, settings.size_px), np.float32)
    )


class _Fed:
    """Keeps what it is fed, and finds nothing. Fulfils `Session`."""

    def __init__(self) -> None:
        self.images: list[Images] = []

    def infer(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        (images,) = feed.values()
        self.images.append(images)
        return {"saliency": np.zeros((len(images), 1, *images.shape[2:]), np.float32)}


def _saliency(session: RuntimeSession, images: Images) -> np.ndarray:
    """Of shape "n h w"."""
    saliency: np.ndarray = next(iter(session.infer({next(iter(session.inputs)): images}).values()))
    if saliency.shape != (len(images), 1, *images.shape[2:]):
        raise BackendError(f"the localizer gave saliency {saliency.shape} for {images.shape}; expected one channel")
    return saliency[:, 0]
