"""An answer as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from l2r2.types import Prediction, PredictionSet
from l2r2_serving.answer import Answer
from l2r2_serving.calling import Card
from l2r2_serving.console.figures import class_bars, evidence_bars, share, step_bars
from l2r2_serving.console.overlay import data_uri
from l2r2_serving.report import CAUTIONS

DEGRADED = "FULL was wanted and could not be had: this is what the foreground alone says"


def answer_html(answer: Answer, picture: bytes, metadata: Mapping[str, str], card: Card) -> str:
    """What a photograph's recognition gave, as part of a page.

    Args:
        picture: The photograph with its regions drawn, JPEG; empty: it could not be drawn.
        metadata: What was sent, source → value.
        card: Of the bundle that answered.
    """
    first, others = answer.prediction, answer.detections[1:]
    thumbnails = answer.thumbnails or (b"",) * max(len(answer.detections), 1)
    number = 1 if others else None
    parts = [
        _heading(first, number),
        _notices(first, answer.unrecognized),
        f'<div class="scene">{_picture(picture, first, len(others))}<div>{_where(first, thumbnails[0])}</div></div>',
        _reasons(first, metadata, card),
    ]
    for place, (other, thumbnail) in enumerate(zip(others, thumbnails[1:], strict=False), 2):
        parts.append(
            f'<details class="other"><summary>{place}: {_headline(other)}</summary>{_notices(other, {})}'
            f"{_where(other, thumbnail)}{_reasons(other, metadata, card)}</details>"
        )
    parts.append(
        f'<h3>What it cost</h3>{step_bars(first.latency_ms)}<p class="bundle">Answered by bundle '
        f"{escape(answer.bundle_name)}, version {escape(answer.bundle_version)} ({escape(card.deployment)}).</p>"
    )
    return "".join(parts)


def error_html(message: str) -> str:
    """One line that says what went wrong."""
    return f'<p class="error" role="alert"><b>No answer:</b> {escape(" ".join(message.split()))}</p>'


def _headline(prediction: Prediction) -> str:
    best = prediction.answer
    if prediction.withheld:
        return f"withheld; likeliest {escape(best.name)}, {share(best.probability)}"
    return f"{escape(best.name)}, {share(best.probability)}"


def _heading(prediction: Prediction, number: int | None) -> str:
    place = "" if number is None else f"{number}: "
    if not prediction.withheld:
        return f'<h2 id="answer" tabindex="-1">{place}{_headline(prediction)}</h2>'
    best = prediction.answer
    return (
        f'<h2 id="answer" tabindex="-1">{place}Withheld: no answer is given</h2>'
        f'<p class="withheld">Likeliest would be {escape(best.name)}, {share(best.probability)}. Do not take it as an '
        "answer.</p>"
    )


def _notices(prediction: Prediction, unrecognized: Mapping[str, str]) -> str:
    lines = [CAUTIONS[caution] for caution in prediction.cautions]
    said = "".join(f"<li>{escape(line)}</li>" for line in lines)
    cautions = f'<ul class="cautions" aria-label="Cautions">{said}</ul>' if said else ""
    degraded = f'<p class="degraded"><b>Degraded.</b> {DEGRADED}.</p>' if prediction.degraded else ""
    ignored = "".join(
        f'<p class="ignored">{escape(source)} “{escape(value)}” is not known to the bundle and had no influence.</p>'
        for source, value in unrecognized.items()
    )
    return degraded + cautions + ignored


def _picture(picture: bytes, prediction: Prediction, others: int) -> str:
    if not picture:
        return '<p class="none">The photograph could not be drawn.</p>'
    width, height = prediction.size_px
    if prediction.region is None:
        found = "No foreground was found, so nothing is drawn."
    else:
        frames = f"{others + 1} foregrounds are framed and numbered, the first thicker." if others else ""
        dimmed = " What is outside the mask is darkened." if prediction.region.mask is not None else ""
        found = (frames or "The foreground is framed.") + dimmed
    return (
        f'<figure><img src="{data_uri(picture)}" alt="The photograph, {width} by {height} pixels. {found}">'
        f"<figcaption>{found}</figcaption></figure>"
    )


def _where(prediction: Prediction, thumbnail: bytes) -> str:
    """The region, and what the thing in it may be."""
    width, height = prediction.size_px
    if prediction.region is None:
        region = f"none found in {width} × {height} pixels"
    else:
        x0, y0, x1, y1 = (round(value) for value in prediction.region.box_xyxy_px)
        score = f"score {prediction.region.score:.2f}"
        region = f"({x0}, {y0}) to ({x1}, {y1}) of {width} × {height} pixels, {score}"
    small = f'<img class="thumbnail" src="{data_uri(thumbnail)}" alt="The region, cut out.">' if thumbnail else ""
    stages = " → ".join(f"{stage} ({share(prediction.stage_confidence[stage])})" for stage in prediction.stages)
    return (
        f'<h3>Region</h3><p class="region">{region}</p>{small}{_set(prediction.prediction_set)}'
        f'<h3>Stages run</h3><p class="stages">{stages}</p>'
    )


def _reasons(prediction: Prediction, metadata: Mapping[str, str], card: Card) -> str:
    evidence = evidence_bars(prediction, metadata)
    why = f"<h3>Why</h3>{evidence}" if evidence else ""
    bars = class_bars(prediction, card.gate_threshold, frozenset(card.hazardous))
    return f"<h3>Foreground, whole photograph, answer</h3>{bars}{why}"


def _set(among: PredictionSet | None) -> str:
    if among is None:
        return ""
    members = [escape(member.name) for member in among.members]
    more = among.size - len(members)
    items = "".join(f"<li>{each}</li>" for each in (*members, *([f"and {more} more"] if more else [])))
    return (
        f'<h3>Prediction set</h3><ul class="set" aria-label="Prediction set">{items}</ul><p class="among">Such sets '
        f"hold the right class for {100 * among.coverage:g} % of photographs like those of validation.</p>"
    )
