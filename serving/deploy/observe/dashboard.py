"""Writes dashboard.json, which Grafana 10 or newer imports: python serving/deploy/observe/dashboard.py."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboard.json")

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF = 'job=~"$job"'
BUNDLE = f'{OF}, bundle=~"$bundle"'
COLUMNS, WIDTH, HEIGHT = 3, 8, 8

Query = tuple[str, str]
"""PromQL and the legend of its series."""


def per_second(metric: str, by: str, of: str) -> str:
    """Counters of all servers, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"


def quantiles(metric: str, of: str, by: str = "") -> list[Query]:
    """The median and the 99th percentile of a histogram in seconds."""
    labels = f"le, {by}" if by else "le"
    told = f" {{{{{by}}}}}" if by else ""
    buckets = per_second(f"{metric}_bucket", labels, of)
    return [(f"histogram_quantile({q}, {buckets})", f"p{round(100 * q)}{told}") for q in (0.5, 0.99)]


def share(rate: str, within: str) -> str:
    """Part of the answers to which something happened."""
    of = f'{BUNDLE}, rate="{rate}"'
    happened, could = (
        f"sum by (bundle) (increase(l2r2_{name}_total{{{of}}}[{within}]))" for name in ("outcomes", "chances")
    )
    return f"{happened} / {could}"


def against_validation(rate: str) -> list[Query]:
    """A share of the last hour, and what it was on validation."""
    expected = f'max by (bundle) (l2r2_validation_rate{{{BUNDLE}, rate="{rate}"}})'
    return [(share(rate, "1h"), "{{bundle}}"), (expected, "{{bundle}}, validation")]


def panel(title: str, unit: str, queries: list[Query], text: str = "", kind: str = "timeseries") -> dict[str, Any]:
    """One graph or table."""
    dashed = {
        "matcher": {"id": "byRegexp", "options": "/, validation$/"},
        "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}}],
    }
    defaults: dict[str, Any] = {"unit": unit, "custom": {}}
    if unit in {"percentunit", "s", "bytes"}:
        defaults["min"] = 0
    targets = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        | ({"format": "table", "instant": True} if kind == "table" else {})
        for place, (expr, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": [dashed] if kind == "timeseries" else []},
        "targets": targets,
    }


ROWS: dict[str, list[dict[str, Any]]] = {
    "Traffic": [
        panel("Calls by code", "reqps", [(per_second("l2r2_calls_total", "code", OF), "{{code}}")]),
        panel(
            "Photographs by code",
            "reqps",
            [
                (per_second("l2r2_photographs_total", "code", BUNDLE), "{{code}}"),
                (per_second("l2r2_replayed_total", "bundle", BUNDLE), "replayed, {{bundle}}"),
            ],
        ),
        panel("Calls by method", "reqps", [(per_second("l2r2_calls_total", "method", OF), "{{method}}")]),
    ],
    "Time": [
        panel("A photograph, waiting included", "s", quantiles("l2r2_photograph_seconds", BUNDLE)),
        panel("Waiting for a worker", "s", quantiles("l2r2_queue_seconds", OF)),
        panel("Steps", "s", quantiles("l2r2_step_seconds", BUNDLE, "step"), "Of the photographs that took that step."),
        panel("A call", "s", quantiles("l2r2_call_seconds", OF, "method")),
        panel(
            "Slots",
            "none",
            [
                (f"sum by (instance) (l2r2_slots_taken{{{OF}}})", "{{instance}}"),
                (f"min(l2r2_slots{{{OF}}})", "the most of a server"),
            ],
            "Calls in flight; beyond the most, calls are refused.",
        ),
        panel(
            "Batches",
            "none",
            [
                (
                    f"{per_second(f'l2r2_{what}_photographs_sum', by, OF)}"
                    f" / {per_second(f'l2r2_{what}_photographs_count', by, OF)}",
                    legend,
                )
                for what, by, legend in (
                    ("batch", "job", "of a BatchRecognize"),
                    ("inference", "stage", "of an inference, {{stage}}"),
                )
            ],
            "Photographs, on average.",
        ),
    ],
    "Answers against validation": [
        *(
            panel(title, "percentunit", against_validation(rate), "Within the last hour; dashed: on validation.")
            for title, rate in (
                ("FULL was wanted", "escalated"),
                ("Nothing was found", "nothing_found"),
                ("FG and FULL disagree, where both ran", "disagreement_where_both_ran"),
                ("Metadata changed the answer", "flipped_by_prior"),
                ("Some metadata were never seen", "unrecognized"),
                ("Withheld", "withheld"),
            )
        ),
        panel("Degraded", "percentunit", [(share("degraded", "1h"), "{{bundle}}")], "FULL was wanted and did not run."),
        panel(
            "Confidence",
            "percentunit",
            [
                (
                    f"{per_second('l2r2_confidence_sum', 'bundle', BUNDLE)}"
                    f" / {per_second('l2r2_confidence_count', 'bundle', BUNDLE)}",
                    "{{bundle}}",
                ),
                (
                    f'max by (bundle) (l2r2_validation_rate{{{BUNDLE}, rate="confidence"}})',
                    "{{bundle}}, validation",
                ),
            ],
            "Of the answer, on average.",
        ),
        panel("Cautions", "reqps", [(per_second("l2r2_cautions_total", "caution", BUNDLE), "{{caution}}")]),
        panel(
            "Metadata never seen, by source",
            "reqps",
            [(per_second("l2r2_unseen_metadata_total", "bundle, source", BUNDLE), "{{bundle}}, {{source}}")],
            "other: a source that the bundle does not use.",
        ),
    ],
    "Servers": [
        panel(
            "Memory",
            "bytes",
            [
                (f"process_resident_memory_bytes{{{OF}}}", "{{instance}}"),
                (f"l2r2_stream_memory_bytes{{{OF}}}", "{{instance}}, answers of streams"),
            ],
        ),
        panel("Ready", "bool_yes_no", [(f"l2r2_ready{{{OF}}}", "{{instance}}")]),
        panel(
            "New versions within an hour",
            "none",
            [
                (
                    f"sum by (bundle, outcome) (increase(l2r2_swaps_total{{{BUNDLE}}}[1h]))",
                    "{{bundle}}, {{outcome}}",
                )
            ],
        ),
        panel(
            "Bundles",
            "none",
            [(f"count by (bundle, version, deployment) (l2r2_bundle_info{{{BUNDLE}}})", "")],
            "The value is how many servers have it.",
            "table",
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The whole page; panels from left to right, a row of the page for each of `ROWS`."""
    panels, numbers, y = [], count(1), 0
    for title, members in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS * WIDTH, "h": 1}
        panels.append({"type": "row", "title": title, "id": next(numbers), "collapsed": False, "gridPos": place})
        for i, each in enumerate(members):
            place = {"x": i % COLUMNS * WIDTH, "y": y + 1 + i // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({**each, "id": next(numbers), "gridPos": place})
        y += 1 + -(-len(members) // COLUMNS) * HEIGHT
    return {
        "uid": "l2r2",
        "title": "L2R2",
        "tags": ["l2r2"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _choice("job", "label_values(l2r2_ready, job)"),
                _choice("bundle", f"label_values(l2r2_bundle_info{{{OF}}}, bundle)"),
            ]
        },
        "panels": panels,
    }


def _choice(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def as_text() -> str:
    """What the file holds."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(as_text(), encoding="utf-8")
