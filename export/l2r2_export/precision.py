"""FP32 → FP16 or BF16: weights and arithmetic in half the bits, float32 at the borders and where half breaks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from l2r2.errors import ArtifactError, ExportError
from l2r2_export.graphs import IR_VERSION, first_line, opset_of, require_onnx, save_checked
from l2r2_export.qdq_graph import layers_of

if TYPE_CHECKING:
    import onnx

Half = Literal["fp16", "bf16"]
"""fp16: 10 bits of fraction, up to 65504; bf16: 7 bits, the range of float32."""

BF16_OPSET = 22
"""The first in which Conv and the poolings take bfloat16. Source: ONNX, docs/Changelog.md."""

BF16_IR_VERSION = 10
"""The first file format that goes with it. Source: ONNX, docs/Versioning.md."""

ALWAYS_FP32 = frozenset(
    {
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Pow",
        "RMSNormalization",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceSumSquare",
        "Softmax",
    }
)
"""Sums of many terms, squares and exponentials: they leave half's range or lose their small terms. Source: a detector
on ConvNeXt V2 found nothing in FP16 until its global response normalisation ran in FP32 [facebookresearch/ConvNeXt-V2
#66]."""

_SPREADING = frozenset({"ReduceL2", "ReduceSumSquare", "Pow"})
"""Where a normalisation written out in small operators (GRN, an old LayerNorm) begins."""

_SMALL_STEPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Max", "Clip", "ReduceMean", "ReduceSum", "Reshape", "Unsqueeze"}
)
"""What such a normalisation goes on with, until it is multiplied onto the whole tensor."""


def to_half(source: Path, out: Path, kind: Half, keep: Sequence[str] = ()) -> tuple[str, ...]:
    """Write a copy of a model that computes in half precision; inputs and outputs stay float32.

    Both kinds are valid ONNX. ONNX Runtime on a CPU runs FP16 by casting around most operators (right, and slower than
    FP32) and refuses BF16; OpenVINO and TensorRT run both, TensorRT exactly as typed.

    Args:
        source: A float32 model, one file.
        keep: Names of nodes that stay in FP32, besides the normalisations, softmax and whatever has no half form or
            holds a constant that half cannot hold.
    Returns:
        Names of all nodes that stay in FP32, in the order in which they compute; but for those that count.
    Raises:
        BackendMissing: onnx is not installed.
        ArtifactError: the source is no readable model, or the place cannot be written.
        ExportError: a name in `keep` is no node, the graph has branches or types that cannot be told, or the result
            is not valid; nothing was written.
    """
    model = _prepared(_read(source), kind, source)
    kept, counting = _kept(model, kind, keep, source)
    _rewrite(model, kind, kept | counting)
    save_checked(model, out, f"{kind} of {source.name}")
    return tuple(node.name for node in model.graph.node if node.name in kept)


class HalfConverter:
    """`to_half` with layers to keep. Fulfils `quantize.Quantizer`."""

    def __init__(self, source: Path, kind: Half) -> None:
        """Read the model.

        Raises:
            BackendMissing, ArtifactError, ExportError: as `to_half`.
        """
        model = _prepared(_read(source), kind, source)
        self._source, self._kind, self._stayed = source, kind, tuple[str, ...]()
        self.layers: Mapping[str, float] = {node.name: cost for node, cost in layers_of(model.graph)}

    def write(self, out: Path, keep: Collection[str] = ()) -> None:
        """As `Quantizer.write`."""
        self._stayed = to_half(self._source, out, self._kind, sorted(keep))

    def in_float32(self) -> tuple[str, ...]:
        """All nodes that stayed in FP32 when it was last written, in the order in which they compute."""
        return self._stayed


def _read(source: Path) -> onnx.ModelProto:
    require_onnx()
    import onnx

    try:
        return onnx.load(str(source))
    except Exception as error:  # an OSError or protobuf's own
        raise ArtifactError(f"{source} is no readable ONNX model: {first_line(error)}; export it again") from error


def _prepared(model: onnx.ModelProto, kind: Half, source: Path) -> onnx.ModelProto:
    """Functions inlined, constants as weights, every node named, types inferred, an opset that knows the kind."""
    import onnx
    from onnx import inliner, version_converter

    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        if kind == "bf16" and opset_of(model) < BF16_OPSET:
            model = version_converter.convert_version(model, BF16_OPSET)
        model.ir_version = max(model.ir_version, BF16_IR_VERSION if kind == "bf16" else IR_VERSION)
        _lift_constants(model.graph)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # the converter, the inliner and shape inference have no common error class
        raise ExportError(f"{source} cannot be prepared for {kind}: {first_line(error)}; keep it in FP32") from error
    taken = {node.name for node in model.graph.node}
    for place, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{place}"
            if node.name in taken:
                raise ExportError(f"{source} has unnamed nodes beside one named {node.name!r}; name them all")
        if any(attribute.type in _SUBGRAPHS for attribute in node.attribute):
            raise ExportError(
                f"{source}: node {node.name!r} ({node.op_type}) branches; {kind} of branches is not supported, "
                "export a model without"
            )
    return model


_SUBGRAPHS = (5, 10)
"""AttributeProto.GRAPH and .GRAPHS."""


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes that hold a tensor or numbers → weights of the graph."""
    from onnx import helper, numpy_helper

    nodes = []
    for node in graph.node:
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in values:
            tensor = values["value"]
            tensor.name = node.output[0]
        elif node.op_type == "Constant" and {"value_float", "value_floats"} & set(values):
            tensor = numpy_helper.from_array(np.asarray(next(iter(values.values())), np.float32), node.output[0])
        else:
            nodes.append(node)
            continue
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(nodes)


def _kept(model: onnx.ModelProto, kind: Half, keep: Sequence[str], source: Path) -> tuple[set[str], set[str]]:
    """Names of the nodes that stay in FP32, and of those that do because they count.

    Sizes and positions are computed from integers, and half counts to 2048 only (bf16: 256): what comes from integers
    alone stays too.
    """
    graph = model.graph
    names = {node.name for node in graph.node}
    if unknown := sorted(set(keep) - names):
        raise ExportError(f"{source} has no node {unknown[0]!r} to keep in FP32; name nodes as the file does")
    formals, floats = _Formals(model, kind), _float_tensors(model)
    weights = {weight.name for weight in graph.initializer}
    unfit = {weight.name for weight in graph.initializer if not _fits(weight, kind)}
    kept, counting, counted, spreading = set(keep), set[str](), set[str](), set[str]()
    for node in graph.node:  # in the order in which they compute
        if not floats.intersection([*node.input, *node.output]):
            continue
        taken = [name for name in node.input if name in floats and name not in weights]
        from_integers = counted.issuperset(taken) if taken else node.op_type in {"Cast", "Range"}
        normalises = node.op_type in _SMALL_STEPS and bool(spreading.intersection(node.input))
        if from_integers:
            counted.update(node.output)
            counting.add(node.name)
        if node.op_type in _SPREADING or (normalises and not _meets_whole(node, spreading | weights)):
            spreading.update(node.output)
        if from_integers:
            continue
        stays = node.op_type in ALWAYS_FP32 or normalises
        if stays or not formals.computes(node) or unfit.intersection(node.input):
            kept.add(node.name)
    return kept, counting


def _meets_whole(node: onnx.NodeProto, small: set[str]) -> bool:
    """Whether a normaliser is brought onto the whole tensor: what is neither a weight nor part of the normaliser."""
    return node.op_type in {"Mul", "Div"} and not small.issuperset(node.input)


def _fits(weight: onnx.TensorProto, kind: Half) -> bool:
    """Whether half holds it: nothing finite becomes infinite, and not all of it becomes zero."""
    import onnx
    from onnx import numpy_helper

    if weight.data_type != onnx.TensorProto.FLOAT:
        return True
    values = numpy_helper.to_array(weight)
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size or not finite.max():
        return True
    with np.errstate(over="ignore", under="ignore"):
        largest = finite.max().astype(_numpy(kind)).astype(np.float32)
    return bool(np.isfinite(largest) and largest > 0)


def _numpy(kind: Half) -> np.dtype[np.generic]:
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(_element(kind)))


def _element(kind: Half) -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT16 if kind == "fp16" else TensorProto.BFLOAT16)


class _Formals:
    """What the standard says an operator may take."""

    def __init__(self, model: onnx.ModelProto, kind: Half) -> None:
        self._opset = opset_of(model)
        self._type = "tensor(float16)" if kind == "fp16" else "tensor(bfloat16)"
        self._float = _float_tensors(model)

    def takes(self, node: onnx.NodeProto, place: int) -> bool:
        """Whether the input at that place may be half."""
        schema = self._schema(node)
        return schema is not None and self._allows(schema.inputs, place)

    def computes(self, node: onnx.NodeProto) -> bool:
        """Whether the node can run in half: all that it gives as float32, and one thing that it takes so, may be."""
        schema = self._schema(node)
        if schema is None or node.op_type in _DTYPE_IN_ATTRIBUTE:
            return False
        given = [place for place, name in enumerate(node.output) if name in self._float]
        taken = [place for place, name in enumerate(node.input) if name in self._float]
        return all(self._allows(schema.outputs, place) for place in given) and (
            not taken or any(self._allows(schema.inputs, place) for place in taken)
        )

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
        import onnx

        if node.domain not in {"", "ai.onnx"}:
            return None
        return onnx.defs.get_schema(node.op_type, self._opset, "")

    def _allows(self, formals: Sequence[onnx.defs.OpSchema.FormalParameter], place: int) -> bool:
        return bool(formals) and self._type in formals[min(place, len(formals) - 1)].types


_DTYPE_IN_ATTRIBUTE = frozenset(
    {"BlackmanWindow", "EyeLike", "HannWindow", "HammingWindow", "MelWeightMatrix", "Multinomial"}
    | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
)
"""Rare, or about precision themselves: left as they are."""


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that are float32."""
    import onnx

    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output, *graph.value_info]}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    for node in graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise ExportError(
                    f"the type of {name!r}, which node {node.name!r} ({node.op_type}) gives, cannot be told; "
                    "keep the model in FP32"
                )
    return {name for name, element in types.items() if element == onnx.TensorProto.FLOAT}


@dataclass
class _Casts:
    """Tensors in the other precision, each made once, right after what it is made from."""

    kind: Half
    weights: dict[str, onnx.TensorProto]
    made: dict[str, str] = field(default_factory=dict)
    halves: list[onnx.TensorProto] = field(default_factory=list)

    def half(self, name: str) -> Iterator[onnx.NodeProto]:
        from onnx import helper, numpy_helper

        if name in self.made:
            return
        self.made[name] = f"{name}_{self.kind}"
        if name in self.weights:
            with np.errstate(over="ignore", under="ignore"):
                values = numpy_helper.to_array(self.weights[name]).astype(_numpy(self.kind))
            self.halves.append(numpy_helper.from_array(values, self.made[name]))
        else:
            yield helper.make_node("Cast", [name], [self.made[name]], f"{name}_to_{self.kind}", to=_element(self.kind))


def _rewrite(model: onnx.ModelProto, kind: Half, kept: set[str]) -> None:
    """Give each node its inputs in its own precision.

    A half node's output is half under its own name plus the kind; where FP32 is wanted, by a kept node or as an output
    of the graph, it is cast back to the original name.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    formals, floats = _Formals(model, kind), _float_tensors(model)
    casts = _Casts(kind, {weight.name: weight for weight in graph.initializer})
    wanted_fp32 = {value.name for value in graph.output}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in floats and (node.name in kept or not formals.takes(node, place)):
                wanted_fp32.add(name)
    nodes = []
    for node in graph.node:
        if node.name in kept:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name in floats and formals.takes(node, place):
                nodes.extend(casts.half(name))
                node.input[place] = casts.made[name]
        _retype(node, kind)
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in floats:
                casts.made[name] = node.output[place] = f"{name}_{kind}"
                if name in wanted_fp32:
                    back = helper.make_node("Cast", [casts.made[name]], [name], f"{name}_to_fp32", to=TensorProto.FLOAT)
                    nodes.append(back)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    weights = [weight for weight in [*graph.initializer, *casts.halves] if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _retype(node: onnx.NodeProto, kind: Half) -> None:
    """Operators whose result's type is an attribute."""
    from onnx import TensorProto, helper, numpy_helper

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = _element(kind)
        elif node.op_type == "ConstantOfShape" and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t).astype(_numpy(kind))
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))
