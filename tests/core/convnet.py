"""A small convolutional classifier in ONNX with a free batch axis, whose answers depend on every pixel."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def images(n: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """What it is asked: float32 (n, 3, size, size) in [0, 1)."""
    return np.random.default_rng(seed).random((n, 3, size, size)).astype(np.float32)


def save_convnet(path: Path, *, channels: int = 8, depth: int = 2, size: int = 16, seed: int = 0) -> Path:
    """Convolutions conv0 … with ReLU, then pooling; `view` "n 3 size size" → `logits` "n channels"."""
    rng = np.random.default_rng(seed)
    nodes, weights, last, width = [], [], "view", 3
    for i in range(depth):
        scale = 1 / np.sqrt(9 * width)
        weight = (rng.standard_normal((channels, width, 3, 3)) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1] * 4, name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        last, width = f"r{i}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"))
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("view", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", channels])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_ir(model: Path, path: Path) -> Path:
    """An ONNX model in OpenVINO's own format, float32."""
    import openvino

    openvino.save_model(openvino.Core().read_model(str(model)), path, compress_to_fp16=False)
    return path
