"""The search on layers whose damage is known: as few as will do are kept, in a bounded number of evaluations."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from l2r2.errors import ArtifactError, BackendError, ExportError, ParityError
from l2r2_export.precision_parity import Figures, Limits, Tolerance
from l2r2_export.sensitivity import MIN_EVALUATIONS, log_of, search

NAMES = tuple(f"layer{i}" for i in range(20))


@dataclass
class Written:
    """A quantizer whose file is the list of layers that it quantized."""

    layers: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 1.0))
    writes: int = 0

    def write(self, out: Path, keep: Collection[str] = ()) -> None:
        self.writes += 1
        out.write_text(json.dumps([name for name in self.layers if name not in keep]))


@dataclass
class Known:
    """Damage adds up over quantized layers; more than `allowed` is outside."""

    harm: Mapping[str, float]
    allowed: float = 1.0
    failing: Exception | None = None
    limits: Limits = field(default_factory=lambda: Tolerance(0.0, 1.0, 1.0))

    def damage(self, file: Path) -> float:
        layers = json.loads(file.read_text())
        if self.failing is not None and set(layers) & set(self.harm):
            raise self.failing
        return float(sum(self.harm.get(name, 0.0) for name in layers))

    def figures(self, file: Path) -> Figures:
        return {"mean_kl": self.damage(file) / self.allowed, "top1_agreement": 1.0, "accuracy_change": 0.0}


def test_where_all_pass_nothing_else_is_tried(tmp_path: Path) -> None:
    quantizer = Written()
    found = search(quantizer, tmp_path / "out", Known({}))
    assert found.kept == ()
    assert found.quantized_share == 1.0
    assert [step.what for step in found.steps] == ["all"]
    assert quantizer.writes == 2  # tried, then written
    assert json.loads((tmp_path / "out").read_text()) == list(NAMES)


def test_the_layers_that_break_are_found_and_no_other_is_kept(tmp_path: Path) -> None:
    harm = {"layer3": 5.0, "layer11": 4.0, "layer17": 3.0, **{name: 0.01 for name in NAMES if name.endswith("2")}}
    found = search(Written(), tmp_path / "out", Known(harm))
    assert found.kept == ("layer3", "layer11", "layer17")
    assert found.quantized_share == pytest.approx(17 / 20)
    assert found.figures["mean_kl"] == pytest.approx(0.02)
    assert json.loads((tmp_path / "out").read_text()) == [name for name in NAMES if name not in found.kept]


def test_of_two_that_would_do_the_cheaper_one_is_kept(tmp_path: Path) -> None:
    layers = {**dict.fromkeys(NAMES, 1.0), "layer4": 100.0}
    found = search(Written(layers), tmp_path / "out", Known({"layer4": 0.7, "layer9": 0.7}))
    assert found.kept == ("layer9",)


@pytest.mark.parametrize("failing", [BackendError("x"), ArtifactError("x")])
def test_a_file_that_does_not_run_is_outside(tmp_path: Path, failing: Exception) -> None:
    found = search(Written(), tmp_path / "out", Known({"layer7": 1.0}, failing=failing))
    assert found.kept == ("layer7",)
    assert found.steps[0].figures == {}
    assert found.steps[0].passed is False


def test_a_model_that_breaks_whole_is_refused_with_its_figures_and_nothing_is_written(tmp_path: Path) -> None:
    class Hopeless(Known):
        def figures(self, file: Path) -> Figures:
            return {"mean_kl": 9.0, "top1_agreement": 1.0, "accuracy_change": 0.0}

    with pytest.raises(ParityError, match=r"no layer is left .*mean_kl 9, at most 1 \(last figures: mean_kl 9"):
        search(Written(), tmp_path / "out", Hopeless({}))
    assert not (tmp_path / "out").exists()


def test_evaluations_are_bounded_and_neighbours_then_tried_together(tmp_path: Path) -> None:
    many = {f"layer{i}": 1.0 for i in range(200)}
    quantizer = Written(many)
    found = search(quantizer, tmp_path / "out", Known({"layer150": 5.0}), max_evaluations=40)
    assert "layer150" in found.kept
    assert len(found.steps) <= 40
    assert quantizer.writes == len(found.steps) + 1
    assert any(len(step.layers) > 1 for step in found.steps if step.what == "alone")


def test_a_slow_model_is_tried_fewer_times(tmp_path: Path) -> None:
    found = search(Written(), tmp_path / "out", Known({"layer5": 5.0}), max_seconds=0.0)
    assert len(found.steps) <= MIN_EVALUATIONS
    assert "layer5" in found.kept


def test_too_few_evaluations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="max_evaluations is 1; expected at least 2"):
        search(Written(), tmp_path / "out", Known({}), max_evaluations=1)


def test_two_evaluations_are_too_few_for_a_model_that_breaks(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="no evaluation is left after 2 evaluations"):
        search(Written(), tmp_path / "out", Known({"layer5": 5.0}), max_evaluations=2)


def test_the_log_is_json_even_where_damage_has_no_number(tmp_path: Path) -> None:
    found = search(Written(), tmp_path / "out", Known({"layer7": np.inf}))
    log = json.loads(json.dumps(log_of(found.steps), allow_nan=False))
    alone = next(step for step in log if step["what"] == "alone" and step["layers"] == ["layer7"])
    assert alone["damage"] == "inf"
    assert log[0]["what"] == "all"
