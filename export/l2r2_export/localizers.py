"""What a recipe finds the foreground with → model files, what a manifest says of them, and proof that they agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from l2r2 import weights
from l2r2.config import DetectorSettings, LocalizerSettings, SaliencySettings
from l2r2.errors import ExportError
from l2r2.experiments.localizing import make_localizer
from l2r2.files import sha256
from l2r2.localization import SaliencyLocalizer
from l2r2.localization.detecting import DetectingLocalizer
from l2r2.localization.frozen import FrozenDetector, FrozenDetectorLocalizer
from l2r2.localization.opening import DECODER, ENCODER, LOCALIZER, OpenedModel, open_localizer
from l2r2.runtimes import open_session
from l2r2.types import Localizer, Photos, Pixels, Region
from l2r2_export.detector_parity import check_detector, check_segmenter
from l2r2_export.localizer import export_saliency
from l2r2_export.parity import check_localizer
from l2r2_export.slices import Remembering

if TYPE_CHECKING:
    from l2r2.localization.detecting import Detector
    from l2r2.localization.preprocessing import Preprocessing

THREADS = 2
"""Of one inference while comparing."""


@dataclass(frozen=True, slots=True)
class ExportedLocalizer:
    """Model files and what a manifest says of them.

    Attributes:
        models: Stage (localizer; with SAM also encoder and decoder) → ONNX file.
        described: With the models' sessions it makes a localizer (`open_localizer`).
    """

    models: dict[str, Path]
    described: SaliencySettings | FrozenDetector

    def open(self, runtime: str = "onnxruntime", *, masks: bool, threads: int = THREADS) -> Localizer:
        """The localizer on a runtime, one that computes nothing twice.

        Raises:
            ConfigError: masks are wanted of a detector without SAM, or there is no such runtime.
            BackendMissing, BackendError, ArtifactError: from the runtime.
        """
        sessions: dict[str, OpenedModel] = {}
        for stage, file in self.models.items():
            session = open_session(file, runtime, threads=threads)
            sessions[stage] = session if stage == DECODER else Remembering(session)
        digests = {stage: sha256(file) for stage, file in self.models.items()}
        return open_localizer(self.described, sessions, digests, masks=masks)


def export_localizer(settings: LocalizerSettings, folder: Path) -> ExportedLocalizer:
    """Write a recipe's localizer as ONNX files: the packaged U²-Netp rewritten, or a detector with its prompt frozen.

    Args:
        folder: Is there; gets localizer.onnx and, with SAM, encoder.onnx and decoder.onnx.
    Raises:
        ExportError: it knows more than the pixels (ground truth, oracle prompts, candidates), is too large (SAM ViT-H),
            or cannot be exported.
        BackendMissing, BackendError, ArtifactError: packages or weights that cannot be had, or a place not written.
    """
    found = _exportable(settings)
    models = {LOCALIZER: folder / f"{LOCALIZER}.onnx"}
    if isinstance(found, SaliencySettings):
        export_saliency(weights.fetch(found.name), models[LOCALIZER], found.size_px)
        return ExportedLocalizer(models, found)
    from l2r2.localization.hub import load_checkpoint
    from l2r2_export.detectors import export_detector

    segmenter: Preprocessing | None = None
    if found.segmenter is not None:  # first: it may be too large, which is known at once
        from l2r2.localization.sam import load_segmenter
        from l2r2_export.sam import export_segmenter

        models |= {stage: folder / f"{stage}.onnx" for stage in (ENCODER, DECODER)}
        sam = load_segmenter(found.segmenter).model
        segmenter = export_segmenter(sam, models[ENCODER], models[DECODER])
    prompt, preprocessing = export_detector(load_checkpoint(found.model), found.texts, models[LOCALIZER])
    described = FrozenDetector(
        settings=_without_places(found), prompt=prompt, preprocessing=preprocessing, segmenter=segmenter
    )
    return ExportedLocalizer(models, described)


def reference_localizer(settings: LocalizerSettings, *, masks: bool) -> Localizer:
    """What an exported localizer is held against: the packaged U²-Netp, or the detector in torch, text and all.

    It finds nothing twice: a localizer costs most of a comparison, and each check asks it for the same photographs.

    Raises:
        ExportError: as `export_localizer`.
        ConfigError, BackendMissing, BackendError, ArtifactError: as `l2r2.experiments.localizing.make_localizer`.
    """
    found = _exportable(settings)
    if isinstance(found, SaliencySettings):
        source = weights.fetch(found.name)
        return ExportedLocalizer({LOCALIZER: source}, found).open(masks=masks)
    made = make_localizer(found, masks=masks)
    assert isinstance(made, DetectingLocalizer)  # so by a meta-prompt
    return DetectingLocalizer(_Found(made.detector), made.segmenter, made.settings)


def compare_localizer(reference: Localizer, exported: Localizer, photos: Photos) -> dict[str, float]:
    """Figures of the exported localizer against the one that it came from, on whatever runtime it is.

    Saliency: those of `LocalizerParity`. A detector: those of `DetectorParity`; with SAM also `mask_iou`, the least IoU
    of two masks of one box, over the reference's instances.

    Args:
        reference: From `reference_localizer`; or an exported one, which another runtime's is held against.
        photos: n ≥ 1, read in order, more than once; they need not fit in memory together.
    Raises:
        ParityError: outside the tolerances, or the exported model failed.
        ExportError: two localizers of different kinds.
        InputError: no photographs.
    """
    if isinstance(reference, SaliencyLocalizer) and isinstance(exported, SaliencyLocalizer):
        return check_localizer(reference, exported, photos)
    detectors = DetectingLocalizer | FrozenDetectorLocalizer
    if not isinstance(reference, detectors) or not isinstance(exported, FrozenDetectorLocalizer):
        raise ExportError(
            f"a {type(exported).__name__} cannot be compared with a {type(reference).__name__}; expected an exported "
            "localizer and the one that it came from"
        )
    figures = check_detector(reference, exported, photos, "localizer")
    if reference.segmenter is None or exported.segmenter is None:
        return figures
    regions = [reference.instances([photo])[0] for photo in photos]
    masks = check_segmenter(reference.segmenter, exported.segmenter, photos, regions)
    return figures | {"mask_iou": masks["min_iou"]}


def _exportable(settings: LocalizerSettings) -> SaliencySettings | DetectorSettings:
    if isinstance(settings, SaliencySettings):
        return settings
    if not isinstance(settings, DetectorSettings) or settings.prompt != "meta":
        how = f"prompt {settings.prompt!r}" if isinstance(settings, DetectorSettings) else "ground truth"
        raise ExportError(
            f"localizer {settings.name} by {how} knows more than the photograph, so nothing can be deployed of it; "
            'expected u2netp, or a detector with localizer.prompt = "meta"'
        )
    return settings


def _without_places(settings: DetectorSettings) -> DetectorSettings:
    """Names of checkpoints instead of where they lie on the machine that exported."""
    model = Path(settings.model).name if Path(settings.model).is_dir() else settings.model
    segmenter = settings.segmenter
    if segmenter is not None:
        segmenter = segmenter.model_copy(update={"checkpoint": Path(segmenter.checkpoint.name)})
    return settings.model_copy(update={"model": model, "segmenter": segmenter})


class _Found:
    """A detector that keeps what it found, by the photograph's pixels. Fulfils `Detector`."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._known: dict[tuple[object, ...], list[list[Region]]] = {}
        self.key = detector.key

    def detect(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[list[Region]]:
        """As the detector's own."""
        place = (hashlib.sha256(photo.tobytes()).digest(), photo.shape, tuple(map(tuple, prompts)))
        if place not in self._known:
            self._known[place] = self._detector.detect(photo, prompts)
        return self._known[place]
