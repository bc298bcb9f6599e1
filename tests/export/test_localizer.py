"""U²-Netp rewritten: the same saliency as its package's file, for batches and other sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from l2r2.errors import ArtifactError, ExportError, InputError, ParityError
from l2r2.types import Pixels, Region
from l2r2_export.graphs import MIN_OPSET, opset_of
from l2r2_export.localizer import INPUT, OUTPUT, export_saliency
from l2r2_export.parity import SALIENCY_TOLERANCE, box_iou, check_localizer
from l2r2_export.slices import Remembering
from tests.export.conftest import make_localizer
from tests.tiny import save_classifier


@pytest.fixture(scope="module")
def few(photos: dict[str, list[Pixels]]) -> list[Pixels]:
    return [photos["china"][0], *photos["flower"][:2]]


def test_saliency_and_regions_are_those_of_the_original(u2netp: Path, saliency_file: Path, few: list[Pixels]) -> None:
    figures = check_localizer(make_localizer(u2netp), make_localizer(saliency_file), few)
    assert figures["n"] == 3
    assert figures["max_abs"] < SALIENCY_TOLERANCE / 10
    assert figures["batch_max_abs"] < SALIENCY_TOLERANCE / 10
    assert figures["min_iou"] == 1.0


def test_the_file_is_valid_and_recent_with_one_free_output(u2netp: Path, saliency_file: Path) -> None:
    model = onnx.load(str(saliency_file))
    onnx.checker.check_model(model, full_check=True)
    assert opset_of(model) >= MIN_OPSET
    given, wanted = model.graph.input[0], model.graph.output[0]
    assert (given.name, wanted.name, len(model.graph.output)) == (INPUT, OUTPUT, 1)
    for value, channels in ((given, 3), (wanted, 1)):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert axes == ["batch", channels, "height", "width"]
    operators = [[node.op_type for node in onnx.load(str(file)).graph.node] for file in (u2netp, saliency_file)]
    assert [kinds.count("Sigmoid") for kinds in operators] == [7, 1]  # the six side outputs are gone


def test_another_size_runs_and_means_the_same(saliency_file: Path, few: list[Pixels]) -> None:
    small, usual = make_localizer(saliency_file, 256), make_localizer(saliency_file)
    photo = few[1]
    assert small.saliency([photo]).shape == (1, 256, 256)
    before, after = usual.locate([photo])[0], small.locate([photo])[0]
    assert before is not None
    assert after is not None
    assert box_iou(before, after) > 0.8


def test_other_weights_are_caught_with_the_figures(
    u2netp: Path, saliency_file: Path, few: list[Pixels], tmp_path: Path
) -> None:
    model = onnx.load(str(saliency_file))
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(values), weight.name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ParityError, match=r"localizer: .*expected max_abs \S+, at most 0\.001.*min_iou"):
        check_localizer(make_localizer(u2netp), make_localizer(tmp_path / "other.onnx"), few[:1])


def test_a_file_that_takes_one_photograph_only_is_caught(u2netp: Path, few: list[Pixels]) -> None:
    with pytest.raises(ParityError, match="localizer: the exported model failed"):
        check_localizer(make_localizer(u2netp), make_localizer(u2netp), few[:2])


def test_no_photographs_are_refused(saliency_file: Path) -> None:
    with pytest.raises(InputError, match="localizer: no photographs to compare on"):
        check_localizer(make_localizer(saliency_file), make_localizer(saliency_file), [])


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "u2netp.onnx").write_bytes(b"no model")
    for source in (tmp_path / "u2netp.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(ArtifactError, match="is no readable ONNX model"):
            export_saliency(source, tmp_path / "out.onnx", 320)


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "classifier.onnx", 32, gain=1.0)
    with pytest.raises(ExportError, match=r"classifier\.onnx .*once rewritten"):
        export_saliency(source, tmp_path / "out.onnx", 320)
    assert not (tmp_path / "out.onnx").exists()


def test_box_iou_worked_by_hand() -> None:
    square = Region((0, 0, 2, 2), 1.0)
    assert box_iou(square, square) == 1.0
    assert box_iou(square, Region((1, 0, 3, 2), 1.0)) == pytest.approx(2 / 6)
    assert box_iou(square, Region((2, 2, 3, 3), 1.0)) == 0.0


def test_a_remembering_session_computes_once_a_feed() -> None:
    class Counting:
        calls = 0
        inputs: dict[str, list[int | str]] = {"x": ["n", "m"]}
        outputs = ("y",)

        def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.calls += 1
            return {"y": feed["x"] + 1}

    inner = Counting()
    session = Remembering(inner)
    one, two = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    for feed in (one, two, one, two.copy()):
        np.testing.assert_array_equal(session.infer({"x": feed})["y"], feed + 1)
    assert inner.calls == 2
    session.infer({"x": one.reshape(2, 1)})
    assert inner.calls == 3
