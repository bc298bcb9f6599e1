"""The page itself: a form made of what the bundle knows."""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Sequence
from html import escape

from l2r2_serving.calling import Card
from l2r2_serving.console.result import error_html
from l2r2_serving.limits import DEFAULT_TOP_K, MAX_DETECTIONS, MAX_TOP_K, MAX_VALUE_CHARS

OTHER = "__other__"
"""Value of the choice that shows a field for free text; a word of a bundle that is spelled so is typed there."""

MAX_CHOICES = 500
"""Of one source; more are typed, not chosen."""


def page_html(card: Card, names: Sequence[str], server: str) -> str:
    """The whole page.

    Args:
        card: Of the bundle that is asked.
        names: All bundles that are served.
        server: Where they are, to be shown.
    """
    sources = sorted(card.vocabularies, key=_place)
    fields = "".join(_source(source, card.vocabularies[source]) for source in sources)
    if not fields:
        fields = '<p class="none">This bundle uses no metadata.</p>'
    form = (
        f'<form id="ask" data-bundle="{escape(card.name)}" data-max-bytes="{card.max_bytes}">{_PHOTOGRAPH}'
        f"<fieldset><legend>What is known of it</legend>{fields}</fieldset>{_options(card)}"
        '<button id="go" type="submit">Recognize</button>'
        '<p id="status" role="status"></p></form>'
    )
    return _frame(
        f"{_bundles(card, names)}<main>{form}"
        '<section id="result" aria-label="Answer"><p class="none">The answer comes here.</p></section></main>'
        f"<footer>{_about(card, server)}</footer>"
    )


def failed_html(message: str) -> str:
    """The page while no bundle can be asked."""
    return _frame(f'<main class="failed">{error_html(message)}<p><a href="">Try again</a></p></main>')


def _frame(body: str) -> str:
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>L2R2 console</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="console.css">'
        '<script src="console.js" defer></script></head><body>'
        "<header><h1>L2R2 console</h1><p>What is in a photograph, how sure that is, and why.</p></header>"
        f"<noscript><p class='error'>This page needs JavaScript.</p></noscript>{body}</body></html>"
    )


_PHOTOGRAPH = (
    '<fieldset id="drop"><legend>Photograph</legend>'
    '<img id="preview" alt="The chosen photograph" hidden>'
    '<p class="hint">Drop or paste one here, or</p>'
    '<p class="row"><label class="button" for="file">Choose a file</label>'
    '<input id="file" type="file" accept="image/*">'
    '<button id="camera" type="button">Take one</button></p><p id="chosen" class="none">None chosen</p>'
    '<input id="shot" type="file" accept="image/*" capture="environment" hidden aria-label="Take a photograph">'
    '</fieldset><dialog id="booth" aria-label="Take a photograph"><video id="finder" autoplay playsinline muted '
    'aria-label="What the camera sees"></video><p class="row"><button id="snap" type="button">Take it</button>'
    '<button id="leave" type="button">Cancel</button></p></dialog>'
)


def _place(source: str) -> tuple[int, str]:
    known = ("habitat", "substrate", "month")
    return (known.index(source), "") if source in known else (len(known), source)


def _source(source: str, values: Iterable[str]) -> str:
    """A choice with "not known" first; every source but the month takes free text too."""
    name, title = escape(source), escape(source[:1].upper() + source[1:])
    if source == "month":
        known = set(values)
        choices = [
            (str(number), calendar.month_name[number] + ("" if str(number) in known else " (not in the bundle)"))
            for number in range(1, 13)
        ]
    else:
        choices = [(value, value) for value in list(values)[:MAX_CHOICES] if value != OTHER]
    options = "".join(f'<option value="{escape(value)}">{escape(shown)}</option>' for value, shown in choices)
    other = "" if source == "month" else f'<option value="{OTHER}">other …</option>'
    select = (
        f'<label>{title}<select data-source="{name}"><option value="">not known</option>{options}{other}'
        "</select></label>"
    )
    if not other:
        return select
    return (
        f'{select}<label class="free" hidden>{title}, in your words'
        f'<input type="text" data-free="{name}" maxlength="{MAX_VALUE_CHARS}" autocomplete="off"></label>'
    )


def _options(card: Card) -> str:
    least = f"{card.localizer_threshold:.2f}"
    return (
        '<details id="options"><summary>Options</summary>'
        f'<label>Candidates<input id="top_k" type="number" min="1" max="{MAX_TOP_K}" value="{DEFAULT_TOP_K}" '
        "required></label>"
        f'<label>Foregrounds, at most<input id="max_detections" type="number" min="1" max="{MAX_DETECTIONS}" value="1" '
        "required></label>"
        f'<label>Least confidence of the localizer (the bundle’s is {least})<span class="row">'
        f'<input id="localizer_threshold" type="range" min="0" max="1" step="0.01" value="{least}" '
        f'data-default="{least}"><output for="localizer_threshold" id="threshold_said">{least}</output></span></label>'
        '<label class="check"><input id="mask" type="checkbox" checked> Darken what is outside the mask, where the '
        "localizer makes one</label>"
        '<label class="check"><input id="thumbnail" type="checkbox"> Show the region cut out</label></details>'
    )


def _bundles(card: Card, names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    options = "".join(
        f'<option value="{escape(name)}"{" selected" if name == card.name else ""}>{escape(name)}</option>'
        for name in names
    )
    return f'<nav aria-label="Bundle"><label>Bundle<select id="bundle">{options}</select></label></nav>'


def _about(card: Card, server: str) -> str:
    sets = "none" if card.coverage is None else f"coverage {100 * card.coverage:g} %"
    facts = {
        "Bundle": f"{card.name}, version {card.version}, {len(card.class_names)} classes",
        "Hazardous classes": ", ".join(card.hazardous[:50]) + (" …" if len(card.hazardous) > 50 else "") or "none",
        "Localizer": f"{card.localizer}, from confidence {card.localizer_threshold:.2f}",
        "Gate": f"FULL runs where FG is below {100 * card.gate_threshold:.1f} %; joined by {card.fusion}",
        "Prediction sets": sets,
        "Server": f"{server}, {card.deployment}",
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(said)}</dd></div>" for name, said in facts.items())
    return f"<h2>About this bundle</h2><dl>{rows}</dl><p>This console keeps no photograph.</p>"
