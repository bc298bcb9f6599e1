"""Weights rounded so that outputs change least, against brute force and against the operators themselves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from l2r2_export.rounding import Layer, compensated, moments_of
from tests.export.toy import LAYERS, toy_classifier, toy_images


def _error(weight: np.ndarray, rounded: np.ndarray, scale: np.ndarray, moments: np.ndarray) -> float:
    off = weight - rounded * scale[..., None]
    return float(np.einsum("god,gde,goe->", off, moments, off))


def _correlated(rng: np.random.Generator, d: int) -> np.ndarray:
    x = rng.normal(0, 1, (500, d)) @ rng.normal(0, 1, (d, d)) + 2.0
    return (x.T @ x / len(x))[None].astype(np.float32)


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    rng = np.random.default_rng(0)
    weight, scale = rng.normal(0, 20, (2, 4, 5)), np.full((2, 4), 0.7)
    rounded = compensated(weight, scale, np.stack([np.eye(5), 2 * np.eye(5)]))
    np.testing.assert_array_equal(rounded, np.rint(weight / 0.7))


def test_it_is_near_the_best_of_all_roundings() -> None:
    rng = np.random.default_rng(1)
    ours = nearest = best = 0.0
    for _ in range(40):
        moments, weight, scale = _correlated(rng, 4), rng.normal(0, 3, (1, 1, 4)), np.ones((1, 1))
        down = np.floor(weight)
        ours += _error(weight, compensated(weight, scale, moments), scale, moments)
        nearest += _error(weight, np.rint(weight), scale, moments)
        best += min(
            _error(weight, down + np.array(up), scale, moments) for up in itertools.product((-1, 0, 1, 2), repeat=4)
        )
    assert best <= ours < 0.7 * nearest


def test_no_number_is_larger_than_allowed() -> None:
    rng = np.random.default_rng(2)
    rounded = compensated(rng.normal(0, 100, (1, 8, 6)), np.ones((1, 8)), _correlated(rng, 6), largest=63)
    assert np.abs(rounded.astype(int)).max() == 63


@pytest.mark.parametrize(
    ("shape", "size", "attributes"),
    [
        ((6, 4, 3, 3), (3, 3), {}),
        ((6, 2, 3, 3), (3, 3), {"group": 2}),
        ((6, 4, 3, 3), (5, 5), {"dilations": [2, 2]}),
        ((6, 4, 1, 1), (1, 1), {"strides": [2, 2]}),
    ],
)
def test_patches_times_rows_are_the_convolution(
    shape: tuple[int, ...], size: tuple[int, int], attributes: dict[str, object]
) -> None:
    """With one place for the kernel, each drawn patch is that place."""
    rng = np.random.default_rng(3)
    weight, given = rng.normal(0, 1, shape), rng.normal(0, 1, (2, 4, *size))
    layer = Layer(helper.make_node("Conv", ["x", "w"], ["y"], **attributes), weight)
    seen = layer.inputs(given, rng)
    got = np.einsum("god,gsd->sgo", layer.rows(weight), seen).reshape(2, -1, 6)
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(given),
        torch.from_numpy(weight),
        groups=int(attributes.get("group", 1)),  # type: ignore[call-overload]
        dilation=attributes.get("dilations", 1),  # type: ignore[arg-type]
    )[:, :, 0, 0].numpy()
    np.testing.assert_allclose(got, np.broadcast_to(wanted[:, None], got.shape), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(layer.back(layer.rows(weight)), weight)


@pytest.mark.parametrize(
    "attributes", [{"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}], ids=str
)
def test_padding_is_zeros_around_the_input(attributes: dict[str, object]) -> None:
    rng = np.random.default_rng(4)
    given, weight = rng.normal(5, 1, (1, 1, 4, 4)), np.ones((1, 1, 3, 3))
    layer = Layer(helper.make_node("Conv", ["x", "w"], ["y"], **attributes), weight)
    got = set(layer.inputs(given, rng).sum(axis=2).ravel().round(6))
    wanted = torch.nn.functional.conv2d(torch.from_numpy(given), torch.from_numpy(weight), padding=1).numpy()
    assert got <= set(wanted.ravel().round(6))
    assert len(got) > 4


@pytest.mark.parametrize("transposed", [0, 1])
def test_rows_of_a_product_are_what_each_output_is_made_of(transposed: int) -> None:
    rng = np.random.default_rng(5)
    matrix = rng.normal(0, 1, (3, 5))
    values = matrix if transposed else np.ascontiguousarray(matrix.T)
    layer = Layer(helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed), values)
    np.testing.assert_array_equal(layer.rows(values)[0], matrix)
    np.testing.assert_array_equal(layer.back(layer.rows(values)), values)


def test_moments_of_the_head_are_those_of_its_inputs(tmp_path: Path) -> None:
    file = toy_classifier(tmp_path / "toy.onnx")
    model = onnx.load(str(file))
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    layers = [Layer(node, weights[node.input[1]]) for node in model.graph.node if node.name in LAYERS]
    images, _ = toy_images(20, 2)
    (found,) = moments_of(model, layers, [images[:8], images[8:]])
    pooled = onnx.reference.ReferenceEvaluator(_until(model, "pooled")).run(None, {"images": images})[0]
    np.testing.assert_allclose(found["head.weight"][0], pooled.T @ pooled / len(pooled), rtol=1e-3)
    assert found["depthwise.weight"].shape == (8, 9, 9)


def _until(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    shorter = onnx.ModelProto()
    shorter.CopyFrom(model)
    del shorter.graph.output[:]
    shorter.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return shorter
