"""Detectors, with SAM or without, as localizers: by one prompt for all, by the label of each, or by candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from l2r2.config import DetectorSettings
from l2r2.errors import ConfigError, DatasetError
from l2r2.localization.boxes import Masks, decide
from l2r2.localization.grounding_dino import GroundingDinoDetector
from l2r2.localization.hub import load_checkpoint
from l2r2.localization.owl import OwlDetector
from l2r2.localization.sam import load_segmenter
from l2r2.types import Photos, Pixels, Region

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


class _Detecting:
    """What the three localizers share."""

    def __init__(self, detector: Detector, segmenter: Masks | None, settings: DetectorSettings) -> None:
        self.detector, self.segmenter, self.settings = detector, segmenter, settings
        sam = "" if segmenter is None else f"-{segmenter.key}"
        self.key = f"{settings.name}-{detector.key}{sam}-{settings.digest()}"

    def regions(self, photo: Pixels, prompts: Sequence[Sequence[str]]) -> list[Region | None]:
        """One region a prompt: the surest instance or all of them (`combine`), masked where there is SAM."""
        return decide(photo, self.detector.detect(photo, prompts), self.settings.combine, self.segmenter)

    def prompt(self, words: str) -> list[str]:
        """The words alone, or in each of the settings' texts."""
        return [text.replace("{}", words) for text in self.settings.texts] or [words]


class DetectingLocalizer(_Detecting):
    """By the meta-prompts of the settings. Fulfils `Localizer`."""

    def locate(self, photos: Photos) -> list[Region | None]:
        """One region or None a photograph, in order."""
        return [self.regions(photo, [self.settings.texts])[0] for photo in photos]

    def instances(self, photos: Photos) -> list[list[Region]]:
        """All that counts in each photograph, surest first, without masks."""
        return [self.detector.detect(photo, [self.settings.texts])[0] for photo in photos]

    def decide(self, photo: Pixels, instances: Sequence[Region]) -> Region | None:
        """The region that a photograph's instances make."""
        return decide(photo, [instances], self.settings.combine, self.segmenter)[0]


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
