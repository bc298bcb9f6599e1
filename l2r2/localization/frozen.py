"""A detector whose prompt is part of its graph, and SAM, on runtime sessions: no torch, no text, no tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict, Discriminator, Tag, model_validator

from l2r2.config import DetectorSettings, SaliencySettings, Settings
from l2r2.errors import BackendError, InputError
from l2r2.localization.boxes import Masks, decide, from_image, from_padded_square, select
from l2r2.localization.preprocessing import Preprocessing, linear_taps, network_input, network_size, resample
from l2r2.types import Mask, Photos, Pixels, Region, Session

PIXELS, SCORES, BOXES = "pixels", "scores", "boxes"
"""A frozen detector's input, "n 3 h w"; its outputs, "n m" in [0, 1] and "n m 4", cxcywh as shares."""

EMBEDDING, MASKS = "embedding", "masks"
"""SAM's embedding "n c h w", and the decoder's output "n 1 h w": logits; its inputs are `EMBEDDING` and `BOXES`."""

AT_ONCE = 4
"""Photographs of one size a pass of a detector; bounds the memory."""

BOXES_AT_ONCE = 16
"""Boxes a pass of SAM's decoder."""


@dataclass(frozen=True, slots=True)
class FrozenPrompt:
    """What an exported detector looks for; a bundle's manifest has it.

    Attributes:
        texts: One meaning (OWL: averaged; Grounding DINO: one caption).
        digest: sha256 of the texts, hexadecimal; `prompt_digest` gives it.
        model_key: Of the checkpoint that read them.
    """

    texts: tuple[str, ...]
    digest: str
    model_key: str

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            raise InputError(f"the prompt {self.texts} has an empty part; expected texts, such as ('full dog',)")
        if self.digest != prompt_digest(self.texts):
            raise InputError(
                f"the prompt's digest is {self.digest[:12]}…; expected {prompt_digest(self.texts)[:12]}… for "
                f"{self.texts}: one of them was changed, export again"
            )


def freeze_prompt(texts: Sequence[str], model_key: str) -> FrozenPrompt:
    """Name a prompt.

    Raises:
        InputError: there is no text, or one is blank.
    """
    return FrozenPrompt(tuple(texts), prompt_digest(texts), model_key)


def prompt_digest(texts: Sequence[str]) -> str:
    """sha256 of the texts as JSON, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


class FrozenDetector(Settings):
    """An exported detector but for its weights: what a bundle's manifest says of it."""

    settings: DetectorSettings
    """The recipe's, the places of checkpoints cut to their names."""
    prompt: FrozenPrompt
    preprocessing: Preprocessing
    segmenter: Preprocessing | None = None
    """What SAM's encoder is fed; None: no SAM."""

    @model_validator(mode="after")
    def _of_one_piece(self) -> FrozenDetector:
        if self.settings.prompt != "meta" or self.settings.texts != self.prompt.texts:
            raise InputError(
                f"the settings look for {self.settings.texts} by prompt {self.settings.prompt!r}, but "
                f"{self.prompt.texts} was frozen; expected the same by 'meta', export again"
            )
        if (self.settings.segmenter is None) != (self.segmenter is None):
            raise InputError("only one of settings.segmenter and segmenter is there; expected both or none")
        return self


def _kind(value: object) -> str:
    frozen = "prompt" in value if isinstance(value, dict) else isinstance(value, FrozenDetector)
    return "detector" if frozen else "saliency"


DeployedLocalizer = Annotated[
    Annotated[SaliencySettings, Tag("saliency")] | Annotated[FrozenDetector, Tag("detector")], Discriminator(_kind)
]
"""What a bundle's manifest may say of its localizer; only a detector has a prompt."""


class FrozenDetectorLocalizer:
    """What the prompt says, found by an exported detector. Fulfils `Localizer`; threads may share it.

    A photograph is answered as by the torch detector it came from: same preprocessing, same choice of boxes.
    """

    def __init__(
        self, session: Session, described: FrozenDetector, weights_digest: str, segmenter: Masks | None = None
    ) -> None:
        """Store the parts.

        Args:
            session: Of a file that `l2r2_export.detectors.export_detector` wrote.
            weights_digest: Of that file; part of `key`.
            segmenter: Where masks are wanted.
        """
        self._session, self._settings, self._preprocessing = session, described.settings, described.preprocessing
        self.segmenter = segmenter
        self._to_pixels = from_padded_square if described.preprocessing.fit == "square" else from_image
        self.prompt = described.prompt
        parts = f"{weights_digest} {described.prompt.digest} {described.preprocessing.digest()}"
        frozen = hashlib.sha256(parts.encode()).hexdigest()[:12]
        sam = "" if segmenter is None else f"-{segmenter.key}"
        self.key = f"{described.settings.name}-frozen-{frozen}-{described.settings.digest()}{sam}"

    @property
    def sessions(self) -> Mapping[str, Session]:
        """Stage → what runs it; SAM's too, where its halves are on sessions."""
        sam = self.segmenter.sessions if isinstance(self.segmenter, SessionSegmenter) else {}
        return {"localizer": self._session, **sam}

    def locate(self, photos: Photos) -> list[Region | None]:
        """One region or None a photograph, in order."""
        return [self.decide(photo, found) for photo, found in zip(photos, self.instances(photos), strict=True)]

    def decide(self, photo: Pixels, instances: Sequence[Region]) -> Region | None:
        """The region that a photograph's instances make."""
        return decide(photo, [instances], self._settings.combine, self.segmenter)[0]

    def instances(
        self,
        photos: Photos,
        min_score: float | None = None,
        *,
        masks: bool = False,  # noqa: ARG002  of `InstanceLocalizer`
    ) -> list[list[Region]]:
        """All that counts in each photograph, surest first; masks are SAM's, which `decide` asks.

        Raises:
            BackendError: the session is of another model, or what it gives is not finite.
        """
        settings = self._settings
        if min_score is not None:
            settings = settings.model_copy(update={"box_threshold": min_score})
        found = []
        for part in _of_one_size(photos, self._preprocessing):
            pixels = np.stack([network_input(photo, self._preprocessing) for photo in part])
            outputs = self._session.infer({PIXELS: pixels})
            scores, boxes = (_finite(outputs, name, "detector") for name in (SCORES, BOXES))
            if scores.ndim != 2 or len(scores) != len(part) or boxes.shape != (*scores.shape, 4):
                raise BackendError(
                    f"the detector gave scores {scores.shape} and boxes {boxes.shape} for {len(part)} photographs; "
                    'expected "n m" and "n m 4"; give a session of an exported detector'
                )
            for photo, row, shares in zip(part, scores, boxes, strict=True):
                height, width = photo.shape[:2]
                found.append(select(self._to_pixels(shares, width, height), row, width, height, settings))
        return found


class SessionSegmenter:
    """SAM on two sessions: one mask a box, the photograph embedded once. Threads may share it."""

    def __init__(self, encoder: Session, decoder: Session, preprocessing: Preprocessing, weights_digest: str) -> None:
        """Store the parts.

        Args:
            encoder, decoder: Of the files that `l2r2_export.sam.export_segmenter` wrote.
            weights_digest: Of both files; part of `key`.
        """
        self._encoder, self._decoder, self._preprocessing = encoder, decoder, preprocessing
        self.key = f"sam-{hashlib.sha256(f'{weights_digest} {preprocessing.digest()}'.encode()).hexdigest()[:12]}"

    @property
    def sessions(self) -> Mapping[str, Session]:
        """Stage → what runs it."""
        return {"encoder": self._encoder, "decoder": self._decoder}

    def masks(self, photo: Pixels, regions: Sequence[Region]) -> list[Mask]:
        """A mask of the photograph's size a region, in order.

        Raises:
            BackendError: a session is of another model, or what it gives is not finite.
        """
        if not regions:
            return []
        pixels = network_input(photo, self._preprocessing)[None]
        embedding = _finite(self._encoder.infer({PIXELS: pixels}), EMBEDDING, "SAM encoder")
        height, width = photo.shape[:2]
        scaled = network_size(height, width, self._preprocessing)
        scale = np.array([scaled[1] / width, scaled[0] / height] * 2, np.float32)
        found = []
        for start in range(0, len(regions), BOXES_AT_ONCE):
            part = regions[start : start + BOXES_AT_ONCE]
            boxes = np.array([region.box_xyxy_px for region in part], np.float32) * scale
            repeated = np.repeat(embedding, len(part), axis=0)
            logits = _finite(self._decoder.infer({EMBEDDING: repeated, BOXES: boxes}), MASKS, "SAM decoder")
            if logits.ndim != 4 or len(logits) != len(part):
                raise BackendError(
                    f'the SAM decoder gave masks {logits.shape} for {len(part)} boxes; expected "n 1 h w"; '
                    "give a session of an exported decoder"
                )
            found += [_in_photo(one, self._preprocessing.size_px, scaled, (height, width)) for one in logits[:, 0]]
        return found


def _in_photo(
    logits: Float[np.ndarray, "low narrow"], frame: tuple[int, int], scaled: tuple[int, int], photo: tuple[int, int]
) -> Mask:
    """SAM's own way up: to the padded frame, cut to what is photograph, to the photograph; then the threshold 0."""
    inner = [linear_taps(source, target) for source, target in zip(logits.shape, frame, strict=True)]
    values = resample(logits, *inner)[: scaled[0], : scaled[1]]
    outer = [linear_taps(source, target) for source, target in zip(scaled, photo, strict=True)]
    return resample(values, *outer) > 0


def _of_one_size(photos: Photos, settings: Preprocessing) -> Iterator[list[Pixels]]:
    """Runs of photographs that the network sees at one size, in order, at most `AT_ONCE` each."""
    part: list[Pixels] = []
    size = (0, 0)
    for photo in photos:
        now = network_size(photo.shape[0], photo.shape[1], settings)
        if part and (now != size or len(part) == AT_ONCE):
            yield part
            part = []
        part.append(photo)
        size = now
    if part:
        yield part


def _finite(outputs: Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    if name not in outputs:
        raise BackendError(
            f"the {what} has no output {name!r} but {', '.join(sorted(outputs)) or 'none'}; "
            f"give a session of an exported {what}"
        )
    values = np.asarray(outputs[name], np.float32)
    if not np.isfinite(values).all():
        raise BackendError(f"the {what} gave {name} that are not finite; its export or its precision is broken")
    return values
