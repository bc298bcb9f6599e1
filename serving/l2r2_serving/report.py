"""An answer as text for people, or as one line of JSON for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from l2r2.types import Caution, PredictionSet, Stage
from l2r2_serving.answer import Answer
from l2r2_serving.convert import normalized

CAUTIONS = {
    Caution.NOTHING_FOUND: "no foreground was found; this is the answer of the whole photograph",
    Caution.FG_UNSURE_FULL_SURE: "the background may have decided: the whole photograph is sure, its foreground is not",
    Caution.FLIPPED_BY_PRIOR: "without the metadata the answer would be another class",
    Caution.HAZARD: "a hazardous class is possible and the foreground is unsure: this is no answer",
}
"""In plain words."""

DEGRADED = "the whole photograph was wanted too, but could not be looked at in time; this is what its foreground says"


def as_text(path: Path, answer: Answer) -> str:
    """A block of lines: what, where, how, why, and what to beware of; no line break at the end."""
    prediction = answer.prediction
    best, *others = prediction.candidates
    width, height = prediction.size_px
    withheld = "no answer; likeliest " if prediction.withheld else ""
    lines = [f"{shown(path)}: {withheld}{best.name} {best.probability:.3f}"]
    if others:
        lines.append(_line("others", ", ".join(f"{c.name} {c.probability:.3f}" for c in others)))
    if prediction.prediction_set is not None:
        lines.append(_line("one of", _set(prediction.prediction_set)))
    if prediction.region is None:
        lines.append(_line("region", f"none found in {width}×{height} px"))
    else:
        x0, y0, x1, y1 = prediction.region.box_xyxy_px
        box = f"({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f}) of {width}×{height} px"
        lines.append(_line("region", f"{box}, score {prediction.region.score:.2f}"))
    lines.append(_line("stages", " → ".join(f"{s} {prediction.stage_confidence[s]:.3f}" for s in prediction.stages)))
    if prediction.explanation is not None:
        skipped = {str(stage) for stage in Stage if stage not in prediction.stages}
        parts = (
            f"{source} {part:+.2f}" for source, part in prediction.explanation.parts.items() if source not in skipped
        )
        why = (
            f"{prediction.explanation.total:+.2f} log-odds against {prediction.explanation.rival} = {', '.join(parts)}"
        )
        lines.append(_line("why", why))
    if prediction.degraded:
        lines.append(_line("degraded", DEGRADED))
    lines += [_line("caution", CAUTIONS[caution]) for caution in prediction.cautions]
    lines += [_line("ignored", f"{s} {v!r}, which the bundle does not know") for s, v in answer.unrecognized.items()]
    lines.append(_line("bundle", f"{answer.bundle_name} {answer.bundle_version}"))
    lines.append(_line("ms", ", ".join(f"{step} {ms:.1f}" for step, ms in prediction.latency_ms.items())))
    return "\n".join(lines)


def as_json(path: Path, answer: Answer) -> str:
    """One line: photo, candidates, region (or null), size_px, stages, explanation, cautions, unrecognized, bundle,
    latency_ms, prediction_set (or null), withheld, degraded. Boxes are xyxy, in pixels and as shares in [0, 1];
    log-odds are natural.
    """
    prediction = answer.prediction
    region, why, among = prediction.region, prediction.explanation, prediction.prediction_set
    values = {
        "photo": shown(path),
        "candidates": [{"name": c.name, "probability": c.probability} for c in prediction.candidates],
        "region": region
        and {
            "box_px": region.box_xyxy_px,
            "box_normalized": normalized(region.box_xyxy_px, *prediction.size_px),
            "score": region.score,
        },
        "size_px": prediction.size_px,
        "stages": {str(stage): prediction.stage_confidence[stage] for stage in prediction.stages},
        "explanation": why and {"rival": why.rival, "total": why.total, "parts": dict(why.parts)},
        "cautions": [str(caution) for caution in prediction.cautions],
        "unrecognized": dict(answer.unrecognized),
        "bundle": {"name": answer.bundle_name, "version": answer.bundle_version},
        "latency_ms": dict(prediction.latency_ms),
        "prediction_set": among
        and {"members": [c.name for c in among.members], "size": among.size, "coverage": among.coverage},
        "withheld": prediction.withheld,
        "degraded": prediction.degraded,
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _set(among: PredictionSet) -> str:
    more = among.size - len(among.members)
    names = ", ".join(c.name for c in among.members) + (f" and {more} more" if more else "")
    return f"{names} ({100 * among.coverage:.0f} % coverage)"


def shown(path: Path) -> str:
    """A path that can be printed, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _line(name: str, text: str) -> str:
    return f"  {name:8} {text}"
