"""Weights to eight bits so that a layer's outputs, not its weights, change least: each rounding is made up for by the
weights still to be rounded.

Three quarters of the squared error of EfficientNet-Lite0 in INT8 came from weights rounded to nearest; this takes most
of it away and costs nothing where the model runs. Source: Frantar et al. 2022, arXiv:2208.11580 and arXiv:2210.17323.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int8

if TYPE_CHECKING:
    import onnx

SPOTS = 24
"""Places of a photograph at which a convolution's input is looked at, drawn at random."""

DAMPING = 0.01
"""Added to the diagonal of the moments, as a share of its mean. Source: Frantar et al. 2022, section 3.3."""

MOST_PHOTOS = 64
"""Of the calibration set that the moments are taken from, evenly spread: 1536 patches of each layer."""

MOST_NUMBERS = 2**27
"""Moments held at once: half a gigabyte; more layers than that are looked at in turns."""

TOGETHER = 8
"""Photographs whose patches are multiplied at once: a product with few rows is bound by memory, not by arithmetic."""

Moments = Float[np.ndarray, "g d d"]
"""Mean of x xᵀ over a layer's inputs, x of d numbers (channels × kernel), one matrix a group of channels."""


def compensated(
    weight: Float[np.ndarray, "g o d"], scale: Float[np.ndarray, "g o"], moments: Moments, largest: int = 127
) -> Int8[np.ndarray, "g o d"]:
    """Round weight / scale to whole numbers, one of the d at a time, those that matter most first.

    After each, the rest of its row moves to where the expected squared error of the row's product with x is least.

    Args:
        weight: Rows of each group; a row is one output channel.
        scale: Of each row, positive.
        largest: Of a rounded number's absolute value.
    """
    d = weight.shape[2]
    diagonal = np.einsum("gii->gi", moments).astype(np.float64)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    by_row, by_column = order[:, :, None], order[:, None, :]
    damped = moments.astype(np.float64)
    damped[:, range(d), range(d)] += np.maximum(DAMPING * diagonal.mean(axis=1, keepdims=True), 1e-12)
    damped = np.take_along_axis(np.take_along_axis(damped, by_row, 1), by_column, 2)
    spread = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    left = np.take_along_axis(weight.astype(np.float64), np.broadcast_to(by_column, weight.shape), 2)
    whole = np.empty_like(left)
    for j in range(d):
        whole[..., j] = np.clip(np.rint(left[..., j] / scale), -largest, largest)
        missed = (left[..., j] - whole[..., j] * scale) / spread[:, j, j, None]
        left[..., j + 1 :] -= missed[..., None] * spread[:, j, None, j + 1 :]
    rounded = np.empty(weight.shape, np.int8)
    np.put_along_axis(rounded, np.broadcast_to(by_column, weight.shape), whole.astype(np.int8), 2)
    return rounded


class Layer:
    """One node with a weight, as rows of numbers.

    Attributes:
        weight: Name of the weight.
        groups, d: As in `Moments`.
    """

    def __init__(self, node: onnx.NodeProto, values: np.ndarray) -> None:
        from onnx import helper

        self.node, self.weight, self._shape = node, node.input[1], values.shape
        self._attributes: dict[str, Any] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self.groups = int(self._attributes.get("group", 1)) if node.op_type == "Conv" else 1
        self._across = node.op_type == "MatMul" or (node.op_type == "Gemm" and not self._attributes.get("transB", 0))
        self.d = values.shape[0] if self._across else int(np.prod(values.shape[1:]))

    @staticmethod
    def fits(node: onnx.NodeProto, values: np.ndarray) -> bool:
        """Whether its rows can be told: a convolution, or a product with a matrix."""
        return node.op_type == "Conv" or (
            values.ndim == 2
            and (
                node.op_type == "MatMul"
                or (node.op_type == "Gemm" and not any(a.name == "transA" and a.i for a in node.attribute))
            )
        )

    def rows(self, values: np.ndarray) -> np.ndarray:
        """A weight, or its rounded form, as "g o d"."""
        matrix = values.T if self._across else values.reshape(len(values), -1)
        return matrix.reshape(self.groups, -1, self.d)

    def back(self, rows: np.ndarray) -> np.ndarray:
        """The way back from `rows`."""
        matrix = rows.reshape(-1, self.d)
        return np.ascontiguousarray(matrix.T if self._across else matrix.reshape(self._shape))

    def inputs(self, given: np.ndarray, rng: np.random.Generator) -> Float[np.ndarray, "g s d"]:
        """What the rows are multiplied with: all vectors of a matrix product, `SPOTS` patches a photograph else."""
        if self.node.op_type != "Conv":
            return given.reshape(1, -1, self.d)
        kernel = np.array(self._shape[2:])
        size = np.array(given.shape[2:])
        axes = len(size)
        strides = np.array(self._attributes.get("strides", [1] * axes))
        steps = np.array(self._attributes.get("dilations", [1] * axes))
        before, after = self._padding(size, kernel, strides, steps)
        spots = (size + before + after - (kernel - 1) * steps - 1) // strides + 1
        n = len(given)
        at: list[np.ndarray] = []
        inside: np.ndarray = np.ones((n, SPOTS) + (1,) * axes, bool)
        for axis in range(axes):
            corner = rng.integers(0, spots[axis], (n, SPOTS)) * strides[axis] - before[axis]
            places = corner[..., None] + np.arange(kernel[axis]) * steps[axis]
            places = places.reshape(n, SPOTS, *(-1 if other == axis else 1 for other in range(axes)))
            inside = inside & (places >= 0) & (places < size[axis])
            at.append(np.clip(places, 0, size[axis] - 1))
        photo = np.arange(n).reshape(n, 1, *[1] * axes)
        patches = np.moveaxis(given, 1, -1)[(photo, *at)] * inside[..., None]  # n spots kernel channels
        patches = np.moveaxis(patches, -1, 2).reshape(n * SPOTS, self.groups, self.d)
        return patches.transpose(1, 0, 2)

    def _padding(
        self, size: np.ndarray, kernel: np.ndarray, strides: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Zeros before and behind each axis. Source: ONNX, operator Conv."""
        automatic = self._attributes.get("auto_pad", b"NOTSET")
        if automatic in {b"SAME_UPPER", b"SAME_LOWER"}:
            total = np.maximum((-(-size // strides) - 1) * strides + (kernel - 1) * steps + 1 - size, 0)
            less = total // 2
            return (less, total - less) if automatic == b"SAME_UPPER" else (total - less, less)
        pads = np.array(self._attributes.get("pads", [0] * 2 * len(size)))
        return pads[: len(size)], pads[len(size) :]


def moments_of(
    model: onnx.ModelProto, layers: Sequence[Layer], calibration: Sequence[np.ndarray], seed: int = 0
) -> Iterator[Mapping[str, Moments]]:
    """Weight → moments of what it is multiplied with, some layers at a time.

    Args:
        model: Float32, with one input.
        layers: Of its nodes.
        calibration: Batches of its input, n ≥ 1 in all.
    """
    turn: list[Layer] = []
    for layer in layers:
        if turn and sum(each.groups * each.d**2 for each in [*turn, layer]) > MOST_NUMBERS:
            yield _moments(model, turn, calibration, seed)
            turn = []
        turn.append(layer)
    if turn:
        yield _moments(model, turn, calibration, seed)


def _moments(
    model: onnx.ModelProto, layers: Sequence[Layer], calibration: Sequence[np.ndarray], seed: int
) -> dict[str, Moments]:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = watched.graph.input[0].name
    wanted = sorted({layer.node.input[0] for layer in layers} - {given})
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    if not wanted:
        watched.graph.output.append(model.graph.output[0])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "watched.onnx"
        onnx.save(watched, str(file))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    sums = {layer.weight: np.zeros((layer.groups, layer.d, layer.d), np.float32) for layer in layers}
    counts = dict.fromkeys(sums, 0)
    photos = [photo for batch in calibration for photo in batch]
    photos = photos[:: -(-len(photos) // MOST_PHOTOS)]
    for start in range(0, len(photos), TOGETHER):
        patches: dict[str, list[np.ndarray]] = {name: [] for name in sums}
        for photo in photos[start : start + TOGETHER]:  # one by one: the inputs of all layers would not fit
            values = dict(zip(wanted, session.run(wanted or None, {given: photo[None]}), strict=False))
            values[given] = photo[None]
            for layer in layers:
                patches[layer.weight].append(layer.inputs(values[layer.node.input[0]], rng))
        for name, parts in patches.items():
            seen = np.concatenate(parts, axis=1)
            sums[name] += seen.transpose(0, 2, 1) @ seen
            counts[name] += seen.shape[1]
    return {name: total / max(counts[name], 1) for name, total in sums.items()}
