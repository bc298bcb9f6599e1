"""What the page sends: a line of JSON, then the photograph's bytes as they are."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from l2r2.errors import InputError
from l2r2.types import Metadata, make_metadata
from l2r2_serving.answer import Options
from l2r2_serving.limits import (
    DEFAULT_TOP_K,
    MAX_DETECTIONS,
    MAX_NAME_CHARS,
    MAX_SOURCES,
    MAX_TOP_K,
    MAX_VALUE_CHARS,
)

MAX_LINE_BYTES = 64 * 2**10
"""Of the JSON; all that metadata may be, written out."""

THUMBNAIL_PX = 160

Name = Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS)]
Value = Annotated[str, StringConstraints(max_length=MAX_VALUE_CHARS)]


class Question(BaseModel):
    """What is asked of one photograph.

    Attributes:
        bundle: Empty: the only one that is served.
        metadata: Source → value; blank: not known.
        localizer_threshold: None: the bundle's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Annotated[str, StringConstraints(max_length=256)] = ""
    metadata: dict[Name, Value] = Field(default={}, max_length=MAX_SOURCES)
    top_k: int = Field(DEFAULT_TOP_K, ge=1, le=MAX_TOP_K)
    localizer_threshold: float | None = Field(None, ge=0, le=1)
    max_detections: int = Field(1, ge=1, le=MAX_DETECTIONS)
    mask: bool = True
    thumbnail: bool = False

    def known(self) -> Metadata:
        """The metadata that are known.

        Raises:
            MetadataError: a month outside 1 to 12.
        """
        return make_metadata(**dict(self.metadata))

    def options(self) -> Options:
        """What is wanted beside the class."""
        return Options(
            localizer_threshold=self.localizer_threshold,
            max_detections=self.max_detections,
            mask=self.mask,
            thumbnail_px=THUMBNAIL_PX if self.thumbnail else 0,
        )


def read_question(body: bytes) -> tuple[Question, bytes]:
    """The question and the photograph.

    Raises:
        InputError: not what the page sends; no value of it is repeated.
    """
    end = body.find(b"\n", 0, MAX_LINE_BYTES)
    if end < 0:
        raise InputError(f"no line of JSON within {MAX_LINE_BYTES:,} bytes; load the page again")
    try:
        question = Question.model_validate_json(body[:end])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:MAX_NAME_CHARS] or "the request"
        raise InputError(f"{field}: {first['msg']}") from None
    photograph = body[end + 1 :]
    if not photograph:
        raise InputError("there is no photograph; choose one, drop one or take one")
    return question, photograph
