"""The front is what it says; the figures show the numbers of the profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from l2r2_export import profile_figures
from l2r2_export.profile_figures import draw, gate_cost, latency_accuracy, pareto, waterfall
from l2r2_export.profiling import STEPS, GatePoint, Profile, Timing

MEDIANS = dict(zip(STEPS, (9.0, 21.0, 1.0, 8.0, 2.0, 16.0, 0.5), strict=True))


def timing(ms: float) -> Timing:
    return Timing(first_ms=3 * ms, p50_ms=ms, p90_ms=1.2 * ms, p99_ms=1.5 * ms, n=40)


def make_profile(ms: float = 40.0, change: float | None = None, **fields: Any) -> Profile:
    values: dict[str, Any] = {
        "bundle": "tiny",
        "bundle_version": "0" * 12,
        "device": "a board",
        "runtime": "openvino",
        "precision": "int8",
        "threads": 1,
        "certified": change is not None,
        "parity": {} if change is None else {"accuracy_change": change},
        "taken": "2026-01-01T00:00:00+00:00",
        "host": {},
        "steps": {name: timing(value) for name, value in MEDIANS.items()},
        "always_both": timing(57.5),
        "cascade": timing(ms),
        "photographs_per_s": 1000 / ms,
        "threshold": 0.8,
        "escalated": 0.25,
        "cost_ms": {},
        "gate": [
            {"threshold": t, "escalated": share, "expected_ms": 39.5 + share * 18}
            for t, share in ((0.0, 0.0), (0.5, 0.1), (0.8, 0.25), (1.0, 1.0))
        ],
        "models": (),
        "peak_memory_mb": 100.0,
    }
    return Profile.model_validate({**values, **fields})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """The axes of the figure that was saved last, which is saved as ever."""
    kept: list[Any] = []
    save = profile_figures.save_figure

    def keep(figure: Any, path: Path) -> None:
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(profile_figures, "save_figure", keep)
    return lambda: kept[-1].axes[0]


def texts(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_the_waterfall_ends_at_the_expected_cost(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    """9 + 21 + 1 + 8 + 0.25 · (2 + 16) + 0.5 = 44 ms; with FULL always 57.5."""
    waterfall(make_profile(), tmp_path / "w.png")
    axis = drawn()
    solid = [bar for bar in axis.patches if bar.get_facecolor()[3] > 0]
    assert [bar.get_width() for bar in solid] == pytest.approx([9, 21, 1, 8, 0.5, 4, 0.5])
    ends = np.cumsum([bar.get_width() for bar in solid])
    assert [bar.get_x() for bar in solid] == pytest.approx([0, *ends[:-1]])
    hollow = [bar.get_width() for bar in axis.patches if bar.get_facecolor()[3] == 0]
    assert hollow == [2, 16]
    assert "expected 44 a photograph (line), 57.5 with FULL always" in axis.get_xlabel()
    assert [label.get_text() for label in axis.get_yticklabels()] == [*STEPS[:4], "gate", *STEPS[4:]]
    assert any("FULL runs for 25.0 % of these photographs, gate at 0.80" in text for text in texts(axis))


def test_a_waterfall_without_full_has_no_gate(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    steps = {name: timing(ms) for name, ms in MEDIANS.items() if "FULL" not in name}
    waterfall(make_profile(steps=steps), tmp_path / "w.png")
    assert [label.get_text() for label in drawn().get_yticklabels()] == list(steps)


def test_the_cost_of_the_gate_has_a_dot_at_the_bundles_own(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    gate_cost(make_profile(), tmp_path / "g.png")
    (dot,) = (line for line in drawn().lines if line.get_marker() == "o")
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (0.8, 44.0)


def test_the_front_is_drawn_for_each_device_and_every_point_has_its_name(
    tmp_path: Path, drawn: Callable[[], Any]
) -> None:
    profiles = [
        make_profile(45, 0.0, runtime="onnxruntime", precision="fp32", parity={}),
        make_profile(30, -0.004),
        make_profile(25, -0.004, threads=2),
        make_profile(35, None, precision="bf16"),
        make_profile(5, 0.001, device="a GPU", runtime="tensorrt", precision="fp16"),
    ]
    latency_accuracy(profiles, tmp_path / "f.png")
    axis = drawn()
    named = set(texts(axis))
    assert {"onnxruntime/fp32/1", "openvino/int8/1", "openvino/int8/2", "openvino/bf16/1", "tensorrt/fp16/1"} <= named
    points = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    hollow = [line for line in points if line.get_markerfacecolor() == "none"]
    assert (len(points), len(hollow)) == (5, 1)
    assert hollow[0].get_ydata()[0] < -0.4
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a board", "a GPU"]


def test_all_figures_are_written_and_not_blank(tmp_path: Path) -> None:
    paths = draw(make_profile(change=-0.01), [make_profile(50, None)], tmp_path)
    assert [path.name for path in paths] == ["waterfall.png", "gate.png", "front.png"]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 400
            assert len(image.convert("L").getcolors()) > 20


def test_a_profile_of_the_first_schema_has_no_gate_to_draw(tmp_path: Path) -> None:
    assert [path.name for path in draw(make_profile(gate=()), [], tmp_path)] == ["waterfall.png", "front.png"]


def _beaten(one: Profile, others: Sequence[Profile]) -> bool:
    """By brute force: another is no worse in both and better in one."""
    return any(
        other.cascade.p50_ms <= one.cascade.p50_ms
        and other.accuracy_change >= one.accuracy_change  # type: ignore[operator]
        and (other.cascade.p50_ms, other.accuracy_change) != (one.cascade.p50_ms, one.accuracy_change)
        for other in others
    )


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([-0.02, -0.01, 0.0, 0.01])), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, float]]) -> None:
    profiles = [make_profile(float(ms), change) for ms, change in points]
    front = pareto(profiles)
    expected = {(p.cascade.p50_ms, p.accuracy_change) for p in profiles if not _beaten(p, profiles)}
    assert [(p.cascade.p50_ms, p.accuracy_change) for p in front] == sorted(expected)
    for one, two in pairwise(front):
        assert one.cascade.p50_ms < two.cascade.p50_ms


def test_what_was_never_compared_is_on_no_front() -> None:
    assert pareto([make_profile(1, None), make_profile(9, -0.5)]) == [make_profile(9, -0.5)]


def test_gate_points_are_shares() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        GatePoint(threshold=0.5, escalated=1.5, expected_ms=1)
