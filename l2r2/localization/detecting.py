"""Detectors, with SAM or without, as localizers: by one prompt for all, by the label of each, or by candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from l2r2.config import DetectorSettings
from l2r2.errors import ConfigError, DatasetError
from l2r2.localization.boxes import mask_box, unite
from l2r2.localization.grounding_dino import GroundingDinoDetector
from l2r2.localization.hub import load_checkpoint
from l2r2.localization.owl import OwlDetector
from l2r2.localization.sam import load_segmenter
from l2r2.types import Mask, Photos, Pixels, Region

KINDS = {"grounding_dino": "grounding-dino", "owlv2": "owlv2", "owlvit": "owlvit"}
"""Name in the settings → what a checkpoint's configuration says."""


@runtime_checkable
class Detector(Protocol):
    """Finds what texts say."""

    @property
    def key(self) -> str:
        """Changes with the weights."""
        ...

    def detect(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[list[Region]]:
        """Regions of each prompt, surest first; the texts of one prompt have one meaning."""
        ...


@runtime_checkable
class Masks(Protocol):
    """Cuts out what boxes hold; `Segmenter` is one."""

    @property
    def key(self) -> str:
        """Changes with the weights."""
        ...

    def masks(self, photo: Pixels, regions: Sequence[Region]) -> list[Mask]:
        """One of the photograph's size a region, in order."""
        ...


class _Detecting:
    """What the three localizers share."""

    def __init__(self, detector: Detector, segmenter: Masks | None, settings: DetectorSettings) -> None:
        self._detector, self._segmenter, self._settings = detector, segmenter, settings
        sam = "" if segmenter is None else f"-{segmenter.key}"
        self.key = f"{settings.name}-{detector.key}{sam}-{settings.digest()}"

    def regions(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[Region | None]:
        """One region a prompt: the surest instance or all of them (`combine`), masked where there is SAM."""
        found = self._detector.detect(photo, prompts)
        if self._settings.combine == "best":
            found = [regions[:1] for regions in found]
        if self._segmenter is not None:
            found = self._masked(photo, found)
        return [unite(regions) if regions else None for regions in found]

    def prompt(self, words: str) -> list[str]:
        """The words alone, or in each of the settings' texts."""
        return [text.replace("{}", words) for text in self._settings.texts] or [words]

    def _masked(self, photo: Pixels, found: list[list[Region]]) -> list[list[Region]]:
        """Boxes become those of their masks; an empty mask is nothing."""
        assert self._segmenter is not None
        masks = iter(self._segmenter.masks(photo, [region for regions in found for region in regions]))
        masked = []
        for regions in found:
            kept = []
            for region, mask in zip(regions, masks, strict=False):
                box = mask_box(mask)
                if box is not None:
                    kept.append(replace(region, box_xyxy_px=box, mask=mask))
            masked.append(kept)
        return masked


class DetectingLocalizer(_Detecting):
    """By the meta-prompts of the settings. Fulfils `Localizer`."""

    def locate(self, photos: Photos) -> list[Region | None]:
        """One region or None a photograph, in order."""
        return [self.regions(photo, [self._settings.texts])[0] for photo in photos]


class OracleLocalizer(_Detecting):
    """By the words of the photograph's own label (the paper's oracle prompts). Fulfils `InformedLocalizer`."""

    def locate_known(self, photo: Pixels, row: Mapping[str, object]) -> Region | None:
        """The region of one photograph, by row["words"].

        Raises:
            DatasetError: its label is not known.
        """
        if not row["words"]:
            raise DatasetError(
                f'{row.get("path")} has no label to prompt with; expected one, or set localizer.prompt = "meta"'
            )
        return self.regions(photo, [self.prompt(str(row["words"]))])[0]


class CandidateLocalizer(_Detecting):
    """By the words of several classes, one region each (the paper's appendix C.1)."""

    def locate_words(self, photo: Pixels, words: Sequence[str]) -> list[Region | None]:
        """One region or None a word; the photograph is embedded once where the networks allow it."""
        return self.regions(photo, [self.prompt(word) for word in words])


def make_detecting_localizer(
    settings: DetectorSettings,
) -> DetectingLocalizer | OracleLocalizer | CandidateLocalizer:
    """Load what the settings name.

    Raises:
        ConfigError: texts that do not fit the kind of prompt, or a model of another name.
        BackendMissing, BackendError, ArtifactError: packages or weights that cannot be had.
    """
    _check_texts(settings)
    checkpoint = load_checkpoint(settings.model)
    if checkpoint.kind != KINDS[settings.name]:  # OWLv2's boxes would be scaled as OWL-ViT's
        raise ConfigError(
            f'localizer.name is "{settings.name}", but localizer.model {settings.model!r} is of kind '
            f'"{checkpoint.kind}"; expected the same, change one of them'
        )
    detector: Detector
    if settings.name == "grounding_dino":
        detector = GroundingDinoDetector(checkpoint, settings)
    else:
        detector = OwlDetector(checkpoint, settings)
    segmenter = None if settings.segmenter is None else load_segmenter(settings.segmenter)
    if settings.prompt == "meta":
        return DetectingLocalizer(detector, segmenter, settings)
    kind = OracleLocalizer if settings.prompt == "oracle" else CandidateLocalizer
    return kind(detector, segmenter, settings)


def _check_texts(settings: DetectorSettings) -> None:
    if settings.prompt == "meta":
        if not settings.texts:
            raise ConfigError('localizer.prompt is "meta" without localizer.texts; give at least one, such as "dog"')
        for text in settings.texts:
            if "{}" in text:
                raise ConfigError(
                    f'localizer.texts has {text!r}, but prompt "meta" knows no words to fill in; leave out the {{}} '
                    'or set localizer.prompt = "oracle"'
                )
        return
    for text in settings.texts:
        if "{}" not in text:
            raise ConfigError(
                f'localizer.texts has {text!r}, but prompt "{settings.prompt}" fills words into {{}}; '
                "write it there, or leave texts out for the words alone"
            )
