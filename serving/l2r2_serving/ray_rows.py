"""What a data set's recognition says of each photograph: one row of a table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import polars as pl

from l2r2.errors import InputError
from l2r2.types import make_metadata
from l2r2_serving.answer import Answer
from l2r2_serving.bundles import OpenBundle

_CANDIDATES = pl.List(pl.Struct({"name": pl.String, "probability": pl.Float64}))
_PAIRS = pl.List(pl.Struct({"source": pl.String, "value": pl.String}))

SCHEMA = pl.Schema(
    [
        ("path", pl.String()),
        ("sha256", pl.String()),
        ("bundle", pl.String()),
        ("bundle_version", pl.String()),
        ("class", pl.String()),
        ("probability", pl.Float64()),
        ("withheld", pl.Boolean()),
        ("degraded", pl.Boolean()),
        ("stages", pl.List(pl.String)),
        ("cautions", pl.List(pl.String)),
        ("box_xyxy_px", pl.List(pl.Float64)),
        ("score", pl.Float64()),
        ("width_px", pl.Int32()),
        ("height_px", pl.Int32()),
        ("top_k", _CANDIDATES),
        ("prediction_set", pl.List(pl.String)),
        ("unrecognized", _PAIRS),
        ("error", pl.String()),
    ]
)
"""Where `error` says why a photograph could not be recognized, all but path, digest (null where the file could not be
read) and bundle is null. `prediction_set` is null where the bundle has none, box and score where nothing was found."""


def recognized(opened: OpenBundle, top_k: int, path: str, known: Mapping[str, str | None]) -> dict[str, Any]:
    """The row of one photograph; with `error` where it cannot be read or what is known of it cannot be used.

    Raises:
        BackendError: a model failed; that is not about the photograph.
    """
    row: dict[str, Any] = {"path": path, "bundle": opened.name, "bundle_version": opened.version}
    try:
        data = _read(path, opened.manifest.images.max_bytes)
        row["sha256"] = hashlib.sha256(data).hexdigest()
        return {**row, **_told(opened.answer(data, make_metadata(**known), top_k))}
    except OSError as error:
        return {**row, "error": f"cannot be read: {error.strerror}"}
    except InputError as error:
        return {**row, "error": str(error)}


def _read(path: str, most: int) -> bytes:
    """At most `most` bytes.

    Raises:
        InputError: the file has more.
        OSError: it cannot be read.
    """
    # A pipe among the photographs, to which nobody writes, does not hold up the run.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        data = file.read(most + 1) or b""
    if len(data) > most:
        raise InputError(f"the file has more than {most:,} bytes; expected fewer")
    return data


def _told(answer: Answer) -> dict[str, Any]:
    prediction = answer.prediction
    region, among = prediction.region, prediction.prediction_set
    return {
        "class": prediction.answer.name,
        "probability": prediction.answer.probability,
        "withheld": prediction.withheld,
        "degraded": prediction.degraded,
        "stages": [str(stage) for stage in prediction.stages],
        "cautions": [str(caution) for caution in prediction.cautions],
        "box_xyxy_px": None if region is None else list(region.box_xyxy_px),
        "score": None if region is None else region.score,
        "width_px": prediction.size_px[0],
        "height_px": prediction.size_px[1],
        "top_k": [{"name": each.name, "probability": each.probability} for each in prediction.candidates],
        "prediction_set": None if among is None else [each.name for each in among.members],
        "unrecognized": [{"source": source, "value": value} for source, value in answer.unrecognized.items()],
    }
