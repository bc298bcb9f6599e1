"""Which setting is picked for which goal."""

import pytest

from l2r2.errors import ConfigError, ExportError
from l2r2_export.auto import Goal, Tried, pick
from l2r2_export.deploy_command import Request, check_request

SLOW = Tried("onnxruntime/fp32", 320, 1, 1, latency_ms=300, throughput=6, drop=0.0)
QUICK = Tried("openvino/fp32", 320, 2, 1, latency_ms=120, throughput=8, drop=0.0)
MANY = Tried("openvino/int8", 320, 1, 8, latency_ms=900, throughput=20, drop=0.4)
CHEAP = Tried("openvino/int8", 256, 2, 1, latency_ms=60, throughput=18, drop=0.8)
ALL = [SLOW, QUICK, MANY, CHEAP]


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal(), MANY),
        (Goal(accuracy_drop=0.0), QUICK),
        (Goal(accuracy_drop=1.0), MANY),
        (Goal(latency_ms=200), QUICK),
        (Goal(latency_ms=100, accuracy_drop=1.0), CHEAP),
        (Goal(latency_ms=1000), QUICK),
        (Goal(throughput=7), MANY),
        (Goal(latency_ms=400, throughput=7), QUICK),
    ],
)
def test_the_best_for_the_goal(goal, expected):
    assert pick(ALL, goal) == expected


def test_nothing_reaches_it():
    expected = (
        r"^nothing reaches at most 50 ms, at least 30 photographs/s, at most 0\.5 points lost; least latency: "
        r"openvino/fp32 120\.0 ms; most throughput: openvino/int8 20\.0 photographs/s \(0\.4 points lost\)\. The bundle"
    )
    with pytest.raises(ExportError, match=expected):
        pick(ALL, Goal(latency_ms=50, throughput=30))


def ask(**changes):
    values = {
        "runtime": None,
        "precision": None,
        "size_px": None,
        "threads": 1,
        "serving": False,
        "build": False,
        "architectures": "",
        "auto": False,
        "latency_ms": None,
        "throughput": None,
        "accuracy_drop": 0.5,
        "validation": 240,
    }
    return Request(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "openvno", "precision": "int8"}, r"^there is no runtime 'openvno'; did you mean openvino\?"),
        ({"runtime": "openvino", "precision": "int4"}, r"^there is no precision 'int4'"),
        ({"runtime": "openvino"}, r"^a deployment needs --runtime and --precision, both; or --auto$"),
        ({"latency_ms": 3.0}, r"^--latency-ms and --throughput are goals of --auto; add --auto, or leave them out$"),
        ({"auto": True, "size_px": 256}, r"^--size-px does not go with --auto, which decides that; leave it out$"),
        (
            {"runtime": "tensorrt-rtx", "precision": "fp16", "architectures": "SM89"},
            r"^--architectures SM89 is for --build; add it, or leave both out$",
        ),
    ],
)
def test_options_that_do_not_go_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_request(ask(**changes))


def test_options_that_do():
    for changes in (
        {},
        {"auto": True, "runtime": "openvino,onnxruntime"},
        {"runtime": "openvino", "precision": "int8"},
    ):
        check_request(ask(**changes))
    assert [ask(**c).asks for c in ({}, {"auto": True}, {"runtime": "x", "precision": "y"})] == [False, True, True]
