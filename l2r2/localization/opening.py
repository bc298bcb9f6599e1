"""A localizer from what a bundle says of it and the sessions of its models, whatever runtime they are on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from l2r2.config import SaliencySettings, parse_settings
from l2r2.errors import ArtifactError, ConfigError
from l2r2.localization.frozen import (
    BOXES,
    EMBEDDING,
    PIXELS,
    FrozenDetector,
    FrozenDetectorLocalizer,
    SessionSegmenter,
)
from l2r2.localization.preprocessing import Preprocessing
from l2r2.localization.saliency import SaliencyLocalizer
from l2r2.types import Localizer, Session

LOCALIZER: Final = "localizer"
ENCODER, DECODER = "encoder", "decoder"
"""Stages: what finds, and SAM's two halves."""


class OpenedModel(Session, Protocol):
    """A session that says what it takes; `l2r2.runtimes.open_session` gives such."""

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """Tensor name → shape; a string is a free axis."""
        ...


def open_localizer(
    described: SaliencySettings | FrozenDetector,
    sessions: Mapping[str, OpenedModel],
    digests: Mapping[str, str],
    *,
    masks: bool,
    size_px: int | None = None,
) -> Localizer:
    """Put a deployed localizer together.

    Args:
        sessions: Stage → model; those of other stages are left alone.
        digests: Stage → sha256 of its file; part of the localizer's key.
        masks: Whether regions must carry one (FG_M and BG_S need it). A detector with SAM always gives them.
        size_px: Another input than the described one: the side of saliency's square, the shorter side of Grounding
            DINO's photographs, whose bound on the longer side shrinks with it. OWL's is fixed.
    Raises:
        ConfigError: masks are wanted of a detector without SAM, or that size is not possible.
        ArtifactError: a stage has no model, or a model that takes something else.
    """
    if isinstance(described, SaliencySettings):
        if size_px is not None:
            described = parse_settings(SaliencySettings, {**described.model_dump(), "size_px": size_px}, LOCALIZER)
        session = _model(sessions, LOCALIZER, None, (described.size_px, described.size_px))
        name = next(iter(session.inputs))
        return SaliencyLocalizer(session, described, digests[LOCALIZER], input_name=name, masks=masks)
    if masks and described.segmenter is None:
        raise ConfigError("FG_M and BG_S need masks, but this detector was exported without SAM; export it with one")
    if size_px is not None:
        preprocessing = _at_size(described.preprocessing, size_px)
        described = described.model_copy(update={"preprocessing": preprocessing})
    segmenter = None
    if described.segmenter is not None:
        encoder = _model(sessions, ENCODER, {PIXELS}, described.segmenter.size_px)
        decoder = _model(sessions, DECODER, {EMBEDDING, BOXES})
        segmenter = SessionSegmenter(encoder, decoder, described.segmenter, digests[ENCODER] + digests[DECODER])
    size = None if described.preprocessing.fit == "keep" else described.preprocessing.size_px
    session = _model(sessions, LOCALIZER, {PIXELS}, size)
    return FrozenDetectorLocalizer(session, described, digests[LOCALIZER], segmenter)


def _at_size(preprocessing: Preprocessing, size_px: int) -> Preprocessing:
    shortest, longest = preprocessing.size_px
    if preprocessing.fit != "keep":
        if size_px == shortest:
            return preprocessing
        raise ConfigError(
            f"localizer.size_px is {size_px}, but this detector was exported for {shortest} pixels and takes no "
            "other; leave it out"
        )
    if size_px < 1:
        raise ConfigError(f"localizer.size_px is {size_px}; expected at least 1")
    return preprocessing.model_copy(update={"size_px": (size_px, round(longest * size_px / shortest))})


def _model(
    sessions: Mapping[str, OpenedModel], stage: str, names: set[str] | None, size: tuple[int, int] | None = None
) -> OpenedModel:
    """A stage's session, checked.

    Args:
        names: Inputs that it must have; None: any single one.
        size: Height and width that its first input must have or leave free.
    """
    if stage not in sessions:
        raise ArtifactError(f"there is no {stage} model but {', '.join(sorted(sessions)) or 'none'}; export it again")
    session = sessions[stage]
    given = session.inputs
    if (len(given) != 1) if names is None else (set(given) != names):
        raise ArtifactError(
            f"the {stage} model takes {', '.join(sorted(given)) or 'nothing'}; expected "
            f"{'a single input' if names is None else ', '.join(sorted(names))}: it is another stage's, export again"
        )
    shape = next(iter(given.values()))
    if size is not None and any(isinstance(a, int) and a != b for a, b in zip(shape[2:], size, strict=False)):
        raise ArtifactError(
            f"the {stage} model takes pixels {list(shape)}; expected {size[0]} × {size[1]} as described, export again"
        )
    return session
