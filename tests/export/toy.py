"""Networks of a few layers that do their small task well, and can be made to break in INT8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from l2r2.runtimes import OnnxRuntimeSession

SIDE = 16
CLASSES = 3
LAYERS = ("first", "depthwise", "point", "head")


def toy_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise in which one colour is a little stronger, and which one."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    images = rng.normal(0, 1, (n, CLASSES, SIDE, SIDE))
    images[np.arange(n), labels] += 0.6
    return images.astype(np.float32), labels


def toy_classifier(
    path: Path, *, outlier: float = 1.0, bias: float = 0.0, extra: list[onnx.NodeProto] | None = None
) -> Path:
    """Four layers, the head fitted to the task by least squares.

    Args:
        outlier: How much one channel between "depthwise" and "point" is larger than the others, and undone behind. The
            function stays; a range for all channels no longer holds the small ones.
        bias: Added to the logits; NaN breaks them.
        extra: Nodes behind the logits, from "scores" to "logits".
    """
    rng = np.random.default_rng(0)
    weights = {
        "first.weight": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "depthwise.weight": rng.normal(0, 0.4, (8, 1, 3, 3)),
        "point.weight": rng.normal(0, 0.4, (16, 8, 1, 1)),
        "head.weight": rng.normal(0, 0.4, (CLASSES, 16)),
        "head.bias": np.zeros(CLASSES),
    }
    weights["depthwise.weight"][0] *= outlier
    weights["point.weight"][:, 0] /= outlier
    nodes = [
        _conv("first", "images", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu_a"),
        _conv("depthwise", "b", "c", pads=[1, 1, 1, 1], strides=[2, 2], group=8),
        helper.make_node("Relu", ["c"], ["d"], "relu_c"),
        _conv("point", "d", "e"),
        helper.make_node("Relu", ["e"], ["f"], "relu_e"),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["pooled"], "flatten"),
    ]
    save(path, nodes, weights, ("images", [CLASSES, SIDE, SIDE]), ("pooled", [16]))
    images, labels = toy_images(600, 1)
    features = OnnxRuntimeSession(path).infer({"images": images})["pooled"].astype(np.float64)
    given = np.hstack([features, np.ones((len(features), 1))])
    fitted = np.linalg.lstsq(given, 4.0 * np.eye(CLASSES)[labels], rcond=None)[0]
    weights |= {"head.weight": fitted[:-1].T, "head.bias": fitted[-1] + bias}
    nodes.append(
        helper.make_node(
            "Gemm", ["pooled", "head.weight", "head.bias"], ["scores" if extra else "logits"], "head", transB=1
        )
    )
    return save(path, [*nodes, *(extra or [])], weights, ("images", [CLASSES, SIDE, SIDE]), ("logits", [CLASSES]))


def toy_localizer(path: Path) -> Path:
    """Saliency is how bright a place and those around it are; two convolutions, any height and width."""
    weights = {
        "blur.weight": np.full((4, 3, 3, 3), 1 / 27) * np.array([1, 2, 0.5, 1]).reshape(4, 1, 1, 1),
        "mix.weight": np.array([1, 0.5, 2, 1]).reshape(1, 4, 1, 1),
        "mix.bias": np.array([-1.0]),
    }
    nodes = [
        _conv("blur", "images", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "mix.weight", "mix.bias"], ["c"], "mix"),
        helper.make_node("Sigmoid", ["c"], ["saliency"], "sigmoid"),
    ]
    return save(path, nodes, weights, ("images", [3, "height", "width"]), ("saliency", [1, "height", "width"]))


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    given: tuple[str, list[int | str]] | tuple[str, list[int]],
    wanted: tuple[str, list[int | str]] | tuple[str, list[int]],
) -> Path:
    """As one file, with those weights that a node takes."""
    used = {name for node in nodes for name in node.input}
    values = [numpy_helper.from_array(np.asarray(weights[n], np.float32), n) for n in weights if n in used]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, ["n", *given[1]])],
        [helper.make_tensor_value_info(wanted[0], TensorProto.FLOAT, ["n", *wanted[1]])],
        values,
    )
    opsets = [
        helper.make_opsetid("", 18),
        *(
            {
                helper.make_opsetid(n.domain, 1).domain: helper.make_opsetid(n.domain, 1) for n in nodes if n.domain
            }.values()
        ),
    ]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def _conv(name: str, given: str, wanted: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [given, f"{name}.weight"], [wanted], name, **attributes)


def logits_of(file: Path, images: np.ndarray) -> np.ndarray:
    """Of a file on ONNX Runtime."""
    return next(iter(OnnxRuntimeSession(file).infer({"images": images}).values()))
