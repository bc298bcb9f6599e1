"""Rules and dashboard speak of metrics and labels that the service really has; rules say what they should.

Where promtool is installed (Debian's package prometheus has it), it also evaluates the rules.
"""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from l2r2_serving.metrics import RATES, Metrics
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import eventually, running
from tests.tiny import BLUE, DARK, MUDDY, encode, make_photo, make_tiny_bundle, make_uniform

OBSERVE = Path(__file__).parents[2] / "serving" / "deploy" / "observe"
RULES = [rule for group in yaml.safe_load((OBSERVE / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
MEAN = "confidence"
"""A mean of the answers that is held against validation as if it were a rate."""
PROMETHEUS_OWN = {"up": {"job", "instance"}}
SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""

NAME = re.compile(r"\b(?:l2r2|process)[_:][a-z0-9_:]+|\bup\b")
SELECTOR = re.compile(rf"({NAME.pattern})\{{(.*?)\}}")
MATCHER = re.compile(r'([a-z_]+)(?:=|!=|=~|!~)"([^"]*)"')

Labels = dict[str, set[str]]
"""Name of a metric → its labels, as a scrape has them."""


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Every metric that a server shows once all that it counts has happened."""
    metrics = Metrics()
    rates = {**dict.fromkeys((*RATES, MEAN), 0.5), "photographs": 10.0}
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("observed") / "tiny", validation=rates)
    with running(bundle, observer=metrics) as place, place.stub() as stub:
        metrics.follow(place.server)
        muddy = pb.RecognizeRequest(image=encode(make_photo(MUDDY, DARK)), habitat="lava", month=1)
        nothing = pb.RecognizeRequest(image=encode(make_uniform(BLUE)))
        stub.BatchRecognize(pb.BatchRecognizeRequest(requests=[muddy, nothing]))
        item = pb.StreamRecognizeRequest(id="a", session="0123456789abcdef", request=muddy)
        for _ in range(2):
            list(stub.StreamRecognize(iter([item])))
        metrics.inference("FG", 2)
        metrics.swap("tiny", refused=True)
        eventually(lambda: bool(metrics.registry.get_sample_value("l2r2_replayed_total", {"bundle": "tiny"})))
        samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    labels: Labels = {name: set(own) for name, own in PROMETHEUS_OWN.items()}
    for sample in samples:
        labels.setdefault(sample.name, set(SCRAPE)).update(sample.labels)
    return labels


def problems(expr: str, exposed: Labels) -> Iterator[str]:
    """Names that nobody shows or records, labels that a metric lacks, rates that there are not."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    for name in set(NAME.findall(bare)) - set(exposed) - RECORDED:
        yield f"no metric {name}"
    for name, matchers in SELECTOR.findall(expr):
        for label, wanted in MATCHER.findall(matchers):
            if name in exposed and label not in exposed[name]:
                yield f"{name} has no label {label}"
            if label == "rate" and wanted not in {*RATES, MEAN}:
                yield f"no rate {wanted}"
    known = {label for own in exposed.values() for label in own} | {""}
    for listed in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", bare):
        for label in set(re.split(r",\s*", listed)) - known:
            yield f"nobody has the label {label}"
    if any(bare.count(opening) != bare.count(closing) for opening, closing in ("()", "[]", "{}")):
        yield "brackets that do not match"


def dashboard() -> dict[str, Any]:
    return json.loads((OBSERVE / "dashboard.json").read_text(encoding="utf-8"))


def shown() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_speak_of_what_there_is(rule: dict[str, Any], exposed: Labels) -> None:
    assert list(problems(rule["expr"], exposed)) == []
    if "alert" in rule:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert all(rule["annotations"][part] for part in ("summary", "description"))


def test_every_recorded_series_is_used() -> None:
    used = {name for rule in RULES for name in NAME.findall(rule["expr"])}
    assert used >= RECORDED


def test_panels_speak_of_what_there_is(exposed: Labels) -> None:
    variables = [str(each["query"]) for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    exprs = [target["expr"] for panel in shown() for target in panel["targets"]] + variables
    assert len(exprs) > 30
    assert [problem for expr in exprs for problem in problems(expr, exposed)] == []
    assert not any(":" in name for expr in exprs for name in NAME.findall(expr)), "it works without the rules"


def test_the_dashboard_shows_every_metric(exposed: Labels) -> None:
    text = json.dumps(dashboard())
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in exposed if name.startswith("l2r2_")}
    assert {name for name in families if name not in text} == {"l2r2_validation_photographs"}


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(l2r2_call_total[5m])", "no metric l2r2_call_total"),
        ("l2r2:share:2h > 0", "no metric l2r2:share:2h"),
        ('l2r2_calls_total{status="OK"}', "l2r2_calls_total has no label status"),
        ('l2r2_outcomes_total{rate="escalations"}', "no rate escalations"),
        ("sum by (model) (l2r2_ready)", "nobody has the label model"),
        ("sum(l2r2_ready", "brackets that do not match"),
    ],
)
def test_what_is_wrong_is_found(expr: str, problem: str, exposed: Labels) -> None:
    assert list(problems(expr, exposed)) == [problem]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", OBSERVE / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_is_what_its_script_writes() -> None:
    assert (OBSERVE / "dashboard.json").read_text(encoding="utf-8") == script().as_text()


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_data_source_is_a_variable() -> None:
    (source,) = [each["name"] for each in dashboard()["templating"]["list"] if each["type"] == "datasource"]
    said = [part["datasource"] for panel in shown() for part in (panel, *panel["targets"])]
    assert {each["uid"] for each in said} == {f"${{{source}}}"}


@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool_agrees(command: list[str]) -> None:
    assert promtool(command, OBSERVE).returncode == 0


@pytest.mark.parametrize(
    ("before", "after"), [("0.02 + 3", "0.1 + 3"), (">= 200", ">= 100"), ("/ l2r2:validated", "/ 1e9")]
)
def test_promtool_finds_a_rule_that_was_changed(before: str, after: str, tmp_path: Path) -> None:
    rules = (OBSERVE / "alerts.yml").read_text()
    assert before in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(before, after))
    shutil.copy(OBSERVE / "alerts_test.yml", tmp_path)
    assert promtool(["test", "rules", "alerts_test.yml"], tmp_path).returncode != 0


def promtool(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    return subprocess.run([found, *command], cwd=folder, capture_output=True, text=True, timeout=60)
