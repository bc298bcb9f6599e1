"""Bars as HTML and SVG. Every name is escaped here: a bundle's words are not to be trusted."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from html import escape

from l2r2.types import Candidate, Prediction, Stage

NOT_RUN = "did not run"

_SVG = '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
"""Screen readers leave the bars out: the same number stands beside each as text."""

_RAIL = '<rect class="rail" width="100" height="10"/>'


def share(probability: float) -> str:
    """0.9312 → "93.1 %". What is nearly sure or nearly impossible is not rounded to all or nothing."""
    if 0.9995 <= probability < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < probability < 0.0005 else f"{100 * probability:.1f} %"


def log_odds(part: float) -> str:
    """0.4 → "+0.40", -0.4 → "−0.40", with the sign that is read out as minus; nothing → "0.00"."""
    return f"{part:+.2f}".replace("-", "−") if round(part, 2) else "0.00"


def class_bars(prediction: Prediction, gate_threshold: float, hazardous: frozenset[str] = frozenset()) -> str:
    """The answer's classes as a table: what FG says, what FULL says, and the answer, each a bar and a number.

    Args:
        gate_threshold: Drawn as a line through FG's bars, [0, 1]; where one reaches it FULL does not run.
        hazardous: Classes that are marked as such.
    """
    rows = "".join(_class_row(candidate, prediction, gate_threshold, hazardous) for candidate in prediction.candidates)
    return (
        f'<table class="bars"><caption>FG looks at the foreground, FULL at the whole photograph; metadata count in '
        f"each. The line through FG is the gate, {share(gate_threshold)}: where FG reaches it, FULL does not run."
        '</caption><thead><tr><th scope="col">class</th><th scope="col">FG</th><th scope="col">FULL</th>'
        f'<th scope="col">answer</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _class_row(candidate: Candidate, prediction: Prediction, gate_threshold: float, hazardous: frozenset[str]) -> str:
    mark = ' <span class="hazard">hazardous</span>' if candidate.name in hazardous else ""
    fg = _stage_cell(Stage.FG, candidate, prediction, gate_threshold)
    full = _stage_cell(Stage.FULL, candidate, prediction)
    return (
        f'<tr><th scope="row">{escape(candidate.name)}{mark}</th>{fg}{full}'
        f'<td class="answer">{_bar(candidate.probability)}</td></tr>'
    )


def _stage_cell(stage: Stage, candidate: Candidate, prediction: Prediction, line: float | None = None) -> str:
    kind = str(stage).lower()
    if stage not in prediction.stages:
        return f'<td class="{kind}"><span class="none">{NOT_RUN}</span></td>'
    told = prediction.stage_candidates.get(stage, ())
    found = next((other for other in told if other.index == candidate.index), None)
    if found is None:
        return f'<td class="{kind}"><span class="none">not in its first {len(told)}</span></td>'
    return f'<td class="{kind}">{_bar(found.probability, line)}</td>'


def _bar(probability: float, line: float | None = None) -> str:
    place = "" if line is None else f'x1="{100 * line:.2f}" x2="{100 * line:.2f}" y1="0" y2="10"'
    gate = place and f'<line class="halo" {place}/><line class="gate" {place}/>'
    filled = f'<rect class="fill" width="{100 * probability:.2f}" height="10"/>'
    return f'{_SVG}{_RAIL}{filled}{gate}</svg><span class="number">{share(probability)}</span>'


def evidence_bars(prediction: Prediction, metadata: Mapping[str, str]) -> str:
    """What each source of evidence added, for the answer or for its rival, as a table; the parts sum to the total.

    Args:
        metadata: What was sent, source → value.
    Returns:
        Nothing where the answer is not explained.
    """
    why = prediction.explanation
    if why is None:
        return ""
    answer, rival = escape(prediction.answer.name), escape(why.rival)
    reach = max(abs(value) for value in (*why.parts.values(), why.total, 1e-9))
    rows = "".join(
        _evidence_row(escape(source), _remark(source, prediction, metadata), part, reach)
        for source, part in why.parts.items()
    )
    total = _evidence_row("total", "", why.total, reach)
    return (
        f'<table class="evidence"><caption>Why <b>{answer}</b> and not <b>{rival}</b>, in natural log-odds: above 0 '
        f"speaks for {answer}, below 0 for {rival}. FULL’s part is what bringing it in changed.</caption>"
        f'<thead><tr><th scope="col">source</th><th scope="col"><div class="sides"><span>for {rival}</span> '
        f'<span>for {answer}</span></div></th><th scope="col">log-odds</th></tr></thead>'
        f"<tbody>{rows}</tbody><tfoot>{total}</tfoot></table>"
    )


def _remark(source: str, prediction: Prediction, metadata: Mapping[str, str]) -> str:
    """What a source said, or why it said nothing."""
    if source in set(Stage):
        return "" if source in prediction.stages else NOT_RUN
    if source not in metadata:
        return "not known"
    value = metadata[source]
    said = calendar.month_name[int(value)] if source == "month" else value
    return escape(said) + (" (not in the bundle)" if source in prediction.unrecognized else "")


def _evidence_row(name: str, remark: str, part: float, reach: float) -> str:
    length = 50 * abs(part) / reach
    side, start = ("for", 50.0) if part >= 0 else ("against", 50.0 - length)
    said = f' <span class="none">{remark}</span>' if remark else ""
    return (
        f'<tr><th scope="row">{name}{said}</th><td>{_SVG}{_RAIL}'
        f'<rect class="{side}" x="{start:.2f}" width="{length:.2f}" height="10"/>'
        f'<line class="zero" x1="50" x2="50" y1="0" y2="10"/></svg></td>'
        f'<td class="number">{log_odds(part)}</td></tr>'
    )


def step_bars(latency_ms: Mapping[str, float]) -> str:
    """Milliseconds of each step as a table, and their sum."""
    total = sum(latency_ms.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(step)}</th><td>{_SVG}{_RAIL}'
        f'<rect class="fill" width="{100 * took / max(total, 1e-9):.2f}" height="10"/></svg></td>'
        f'<td class="number">{took:.1f} ms</td></tr>'
        for step, took in latency_ms.items()
    )
    return (
        '<table class="steps"><caption>Time of each step on the server, waiting left out.</caption>'
        '<thead><tr><th scope="col">step</th><th scope="col">share</th><th scope="col">time</th></tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">total</th><td></td>'
        f'<td class="number">{total:.1f} ms</td></tr></tfoot></table>'
    )
