"""FP16 and BF16: half the bits where half is enough, FP32 where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from l2r2.errors import ArtifactError, ExportError
from l2r2.runtimes import open_session
from l2r2_export.precision import HalfConverter, to_half
from tests.export.toy import LAYERS, logits_of, save, toy_classifier, toy_images

IMAGES = toy_images(60, 7)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_classifier(tmp_path_factory.mktemp("toy") / "toy.onnx")


def _types(file: Path) -> dict[str, int]:
    """Of each layer's weight."""
    graph = onnx.load(str(file)).graph
    weights = {weight.name: weight.data_type for weight in graph.initializer}
    return {node.name: weights[node.input[1]] for node in graph.node if node.name in LAYERS}


def test_fp16_answers_alike_from_half_the_bytes(source: Path, tmp_path: Path) -> None:
    assert to_half(source, tmp_path / "half.onnx", "fp16") == ()
    before, after = logits_of(source, IMAGES), logits_of(tmp_path / "half.onnx", IMAGES)
    assert after.dtype == np.float32
    assert 0 < np.abs(after - before).max() < 2**-7 * np.abs(before).max()
    assert set(_types(tmp_path / "half.onnx").values()) == {TensorProto.FLOAT16}


def test_bf16_is_coarser_than_fp16_and_runs_where_a_runtime_has_it(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    to_half(source, tmp_path / "bf16.onnx", "bf16")
    assert set(_types(tmp_path / "bf16.onnx").values()) == {TensorProto.BFLOAT16}
    before = logits_of(source, IMAGES)
    after = open_session(tmp_path / "bf16.onnx", "openvino").infer({"images": IMAGES})["logits"]
    assert 2**-12 < np.abs(after - before).max() / np.abs(before).max() < 2**-4


def test_what_is_to_stay_stays_and_is_told(source: Path, tmp_path: Path) -> None:
    assert to_half(source, tmp_path / "half.onnx", "fp16", ["point", "first"]) == ("first", "point")
    types = _types(tmp_path / "half.onnx")
    assert {name for name, kind in types.items() if kind == TensorProto.FLOAT} == {"first", "point"}
    np.testing.assert_allclose(logits_of(tmp_path / "half.onnx", IMAGES), logits_of(source, IMAGES), atol=0.02)


def test_a_weight_that_half_cannot_hold_stays(tmp_path: Path) -> None:
    source = toy_classifier(tmp_path / "large.onnx", outlier=1e6)
    assert "depthwise" in to_half(source, tmp_path / "half.onnx", "fp16")
    assert "depthwise" not in to_half(source, tmp_path / "bf16.onnx", "bf16")  # it has float32's range


def test_softmax_and_normalisations_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["a"], "pool"),
        helper.make_node("Flatten", ["a"], ["b"], "flatten"),
        helper.make_node("LayerNormalization", ["b", "scale"], ["c"], "norm"),
        helper.make_node("MatMul", ["c", "matrix"], ["d"], "product"),
        helper.make_node("Softmax", ["d"], ["probs"], "softmax"),
    ]
    weights = {"scale": np.ones(3), "matrix": np.eye(3)}
    source = save(tmp_path / "norm.onnx", nodes, weights, ("images", [3, 16, 16]), ("probs", [3]))
    assert to_half(source, tmp_path / "half.onnx", "fp16") == ("norm", "softmax")
    np.testing.assert_allclose(logits_of(tmp_path / "half.onnx", IMAGES), logits_of(source, IMAGES), atol=0.01)


def test_a_normalisation_in_small_operators_stays_and_what_it_is_brought_onto_does_not(tmp_path: Path) -> None:
    """ConvNeXt V2's GRN: x · ‖x‖ / mean(‖x‖); ‖x‖² of large values leaves half's range."""
    nodes = [
        helper.make_node("ReduceL2", ["images", "axes"], ["norm"], "norm", keepdims=1),
        helper.make_node("ReduceMean", ["norm", "channel"], ["mean"], "mean", keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["safe"], "add"),
        helper.make_node("Div", ["norm", "safe"], ["share"], "div"),
        helper.make_node("Mul", ["images", "share"], ["scaled"], "mul"),
        helper.make_node("GlobalAveragePool", ["scaled"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
    ]
    path = save(tmp_path / "grn.onnx", nodes, {"epsilon": np.array(1e-6)}, ("images", [3, 16, 16]), ("logits", [3]))
    model = onnx.load(str(path))
    for name, axes in (("axes", [2, 3]), ("channel", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), name))
    onnx.save(model, str(path))
    stays = to_half(path, tmp_path / "half.onnx", "fp16")
    assert set(stays) >= {"norm", "mean", "add", "div"}
    assert "pool" not in stays
    images = 100 * IMAGES
    np.testing.assert_allclose(logits_of(tmp_path / "half.onnx", images), logits_of(path, images), rtol=0.05, atol=0.5)


def test_sizes_are_counted_in_float32_and_are_no_layers(tmp_path: Path) -> None:
    """A place up to 3000 along an axis, of which half holds every second."""
    nodes = [
        helper.make_node("Range", ["begin", "end", "step"], ["places"], "range"),
        helper.make_node("Cast", ["places"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats"], ["last"], "last", keepdims=0),
        helper.make_node("GlobalAveragePool", ["images"], ["a"], "pool"),
        helper.make_node("Flatten", ["a"], ["b"], "flatten"),
        helper.make_node("Mul", ["b", "zero"], ["c"], "mul"),
        helper.make_node("Add", ["c", "last"], ["logits"], "add"),
    ]
    path = save(tmp_path / "count.onnx", nodes, {"zero": np.zeros(3)}, ("images", [3, 16, 16]), ("logits", [3]))
    model = onnx.load(str(path))
    for name, value in (("begin", 0), ("end", 3000), ("step", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    onnx.save(model, str(path))
    stays = to_half(path, tmp_path / "half.onnx", "bf16", ["add"])
    assert stays == ("add",)
    pytest.importorskip("openvino")
    got = open_session(tmp_path / "half.onnx", "openvino").infer({"images": IMAGES[:1]})["logits"]
    np.testing.assert_array_equal(got, np.full((1, 3), 2999.0))


def test_a_converter_is_a_quantizer_for_the_search(source: Path, tmp_path: Path) -> None:
    converter = HalfConverter(source, "fp16")
    assert tuple(converter.layers) == LAYERS
    converter.write(tmp_path / "half.onnx", {"head"})
    assert converter.in_float32() == ("head",)
    assert _types(tmp_path / "half.onnx")["head"] == TensorProto.FLOAT


def test_an_unknown_node_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no node 'nowhere' to keep in FP32"):
        to_half(source, tmp_path / "half.onnx", "fp16", ["nowhere"])
    assert not list(tmp_path.iterdir())


def test_damaged_and_absent_sources_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(source.read_bytes()[:-200])
    for name in ("half.onnx", "absent.onnx"):
        with pytest.raises(ArtifactError, match=f"{name} is no readable ONNX model: "):
            to_half(tmp_path / name, tmp_path / "out.onnx", "fp16")


def test_an_operator_whose_type_cannot_be_told_is_refused(tmp_path: Path) -> None:
    strange = helper.make_node("Rotate", ["scores"], ["turned"], "rotate", domain="somewhere.else")
    after = helper.make_node("Relu", ["turned"], ["logits"], "after")
    source = toy_classifier(tmp_path / "strange.onnx", extra=[strange, after])
    with pytest.raises(ExportError, match=r"strange\.onnx|'turned'"):
        to_half(source, tmp_path / "out.onnx", "fp16")
    assert not (tmp_path / "out.onnx").exists()


def test_branches_are_refused(source: Path, tmp_path: Path) -> None:
    model = onnx.load(str(source))
    ways = []
    for name in ("then", "else"):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])
        ways.append(helper.make_graph([helper.make_node("Identity", ["logits"], [name])], name, [], [value]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=ways[0], else_branch=ways[1]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, str(tmp_path / "branches.onnx"))
    with pytest.raises(ExportError, match=r"node 'if' \(If\) branches; fp16 of branches is not supported"):
        to_half(tmp_path / "branches.onnx", tmp_path / "out.onnx", "fp16")
