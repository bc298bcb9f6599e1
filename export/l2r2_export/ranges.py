"""The range that eight bits are spread over, for each tensor: where the mean squared error of rounding and clipping is
least. The largest value ever seen makes a step of all others coarse.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (MSE-based range setting).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from l2r2.errors import ExportError
from l2r2_export.qdq_graph import ACTIVATIONS, QUANTIZED

if TYPE_CHECKING:
    import onnx

STEPS = 255
"""Between the ends of a range."""

DRAWN = 1024
"""Values of a tensor looked at, of each batch."""

SHARES = np.linspace(0.3, 1.0, 29)
"""Of the range seen that is tried, at either end or at both."""

Range = tuple[float, float]


def ranges_of(
    model: onnx.ModelProto, calibration: Sequence[np.ndarray], symmetric: bool, folder: Path, seed: int = 0
) -> dict[str, Range]:
    """Tensor → range, for all that may be quantized.

    Args:
        model: Float32, with one input and inferred shapes.
        calibration: Batches of its input, n ≥ 1 in all.
        symmetric: Whether zero must be in the middle.
        folder: For a file that is read at once.
    Raises:
        ExportError: a tensor is not finite on the calibration set.
    """
    seen = _seen(model, [batch for batch in calibration if len(batch)], folder, seed)
    found = {}
    for name, (low, high, drawn) in seen.items():
        if not np.isfinite([low, high]).all():
            raise ExportError(f"tensor {name!r} is not finite on the calibration set; export the model again")
        found[name] = best_range(drawn, low, high, symmetric)
    return found


def best_range(values: Float[np.ndarray, " n"], low: float, high: float, symmetric: bool = False) -> Range:
    """The range with the least mean squared error, zero always exact; of equals the widest.

    Args:
        values: Drawn from the tensor.
        low, high: All of its values are between.
        symmetric: Whether zero must be in the middle.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    tried = [(low, high)]
    for share in SHARES[-2::-1]:
        both = (share * low, share * high)
        tried += [both] if symmetric else [both, (low, share * high), (share * low, high)]
    return min(tried, key=lambda ends: _error(values, *ends))


def _error(values: Float[np.ndarray, " n"], low: float, high: float) -> float:
    """Mean squared error of values as whole steps between the ends."""
    if not high > low:
        return float(np.square(values).mean())
    scale = (high - low) / STEPS
    zero = np.rint(-low / scale)
    steps = np.clip(np.rint(values / scale) + zero, 0, STEPS)
    return float(np.square((steps - zero) * scale - values).mean())


def _seen(
    model: onnx.ModelProto, calibration: Sequence[np.ndarray], folder: Path, seed: int
) -> Mapping[str, tuple[float, float, Float[np.ndarray, " n"]]]:
    """Tensor → least and largest value, and values drawn at random: only these leave the graph."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    given, names = graph.input[0].name, list(_tensors(model))
    nodes, outputs = [], []
    graph.initializer.append(helper.make_tensor("ranges_flat", TensorProto.INT64, [1], [-1]))
    shares = [helper.make_tensor_value_info("ranges_shares", TensorProto.DOUBLE, [DRAWN])]
    for place, name in enumerate(names):
        low, high, drawn, flat, size, real, at, whole = (
            f"ranges_{what}_{place}" for what in ("low", "high", "drawn", "flat", "size", "real", "at", "whole")
        )
        nodes += [
            helper.make_node("ReduceMin", [name], [low], keepdims=0),
            helper.make_node("ReduceMax", [name], [high], keepdims=0),
            helper.make_node("Reshape", [name, "ranges_flat"], [flat]),
            helper.make_node("Size", [name], [size]),
            helper.make_node("Cast", [size], [real], to=TensorProto.DOUBLE),
            helper.make_node("Mul", ["ranges_shares", real], [at]),
            helper.make_node("Cast", [at], [whole], to=TensorProto.INT64),
            helper.make_node("Gather", [flat, whole], [drawn]),
        ]
        outputs += [(low, []), (high, []), (drawn, [DRAWN])]
    graph.node.extend(nodes)
    graph.input.extend(shares)
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs)
    file = folder / "watched.onnx"
    onnx.save(watched, str(file))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    runs = [session.run(None, {given: batch, "ranges_shares": rng.random(DRAWN)}) for batch in calibration]
    found = {}
    for place, name in enumerate(names):
        lows, highs, values = ([run[3 * place + which] for run in runs] for which in range(3))
        found[name] = (float(np.min(lows)), float(np.max(highs)), np.concatenate(values).astype(np.float64))
    return found


def _tensors(model: onnx.ModelProto) -> Iterator[str]:
    """What nodes that may be quantized read and write, constants and whole numbers left out."""
    from onnx import TensorProto

    graph = model.graph
    floats = {
        value.name
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    floats -= {weight.name for weight in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in QUANTIZED | ACTIVATIONS]
    yield from dict.fromkeys(name for node in nodes for name in [*node.input, *node.output] if name in floats)
