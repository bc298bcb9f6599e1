"""Where Q/DQ pairs go in an ONNX graph, so that ONNX Runtime computes in INT8 what should be, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Where the multiplications are; each may be kept in floating point."""

QUANTIZED = LAYERS | {
    *("Add", "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Reshape", "Resize", "Squeeze"),
    *("Transpose", "Unsqueeze"),
}
"""What runs in INT8: the layers, and what passes eight bits on between them. Normalisations, softmax and GELU stay."""

ACTIVATIONS = frozenset({"Clip", "Relu"})
"""What ONNX Runtime computes together with the convolution before it."""


def layers_of(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, float]]:
    """Layers with a weight, and how often they multiply for one photograph (an axis of unknown length counts once)."""
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.output]
    }
    for node in graph.node:
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in weights:
            given = shapes.get(node.output[0], [])
            places = given[2:] if node.op_type.startswith("Conv") else given[1:-1]
            yield node, float(np.prod(weights[node.input[1]]) * np.prod([max(side, 1) for side in places]))


class Neighbours:
    """Who makes a tensor and who reads it, looking through activations."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def of(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Nodes before and behind one."""
        for name in node.input:
            while name in self._makers and self._makers[name].op_type in ACTIVATIONS:
                name = self._makers[name].input[0]
            if name in self._makers:
                yield self._makers[name]
        behind = [reader for name in node.output for reader in self.readers.get(name, [])]
        while behind:
            reader = behind.pop()
            if reader.op_type in ACTIVATIONS:
                behind.extend(self.readers.get(reader.output[0], []))
            else:
                yield reader


def between(graph: onnx.GraphProto, kept: Collection[str]) -> Iterator[str]:
    """Names of sums, poolings and the like that have kept layers beside them and no quantized one."""
    neighbours = Neighbours(graph)
    for node in graph.node:
        if node.op_type in QUANTIZED - LAYERS:
            layers = [other.name for other in neighbours.of(node) if other.op_type in LAYERS]
            if layers and set(kept).issuperset(layers):
                yield node.name


def ends(graph: onnx.GraphProto, kept: Collection[str]) -> Iterator[str]:
    """Tensors in which quantized convolutions end, their activation included.

    Without a pair there, ONNX Runtime computes the convolution in floating point. What comes out of the model, or is
    one step before, stays as fine as it is.
    """
    readers = Neighbours(graph).readers
    given = {value.name for value in graph.output}
    for node in graph.node:
        if not node.op_type.startswith("Conv") or node.name in kept:
            continue
        name = node.output[0]
        if len(readers.get(name, [])) == 1 and readers[name][0].op_type in ACTIVATIONS and name not in given:
            name = readers[name][0].output[0]
        if name not in given and not all(given.issuperset(reader.output) for reader in readers.get(name, [])):
            yield name


def guard(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Keep kept layers as they are in ONNX Runtime.

    Its WeightBiasQuantization rounds the weights of any convolution between two pairs, per tensor, when it loads a
    file: kept layers came out worse than quantized ones (0.83 instead of 0.97 of the answers, for one layer of
    EfficientNet-Lite0). It looks for one scale before the layer, so each channel is given its own, all equal.
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        pair = makers.get(node.input[0]) if node.input else None
        if node.name not in kept or node.op_type == "MatMul" or pair is None or pair.op_type != "DequantizeLinear":
            continue
        scale, zero = (numpy_helper.to_array(weights[name]) for name in pair.input[1:])
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        rows, columns = weights[node.input[1]].dims[:2]
        if node.op_type == "Conv":
            channels = columns * attributes.get("group", 1)
        else:
            channels = columns if attributes.get("transB") else rows
        names = [f"{node.name}_given_{what}" for what in ("scale", "zero", "values")]
        graph.initializer.append(numpy_helper.from_array(np.full(channels, scale, np.float32), names[0]))
        graph.initializer.append(numpy_helper.from_array(np.full(channels, zero, zero.dtype), names[1]))
        again = helper.make_node(
            "DequantizeLinear", [pair.input[0], *names[:2]], [names[2]], f"{node.name}_given", axis=1
        )
        nodes.insert(-1, again)
        node.input[0] = names[2]
    del graph.node[:]
    graph.node.extend(nodes)
