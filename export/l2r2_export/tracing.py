"""From a module in PyTorch to an ONNX graph with free axes, or one line that says why not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l2r2.errors import ExportError
from l2r2_export.graphs import MIN_OPSET, OPSET, first_line, quiet, require_onnx

if TYPE_CHECKING:
    import onnx
    import torch

MAX_BYTES = 2**31 - 2**24
"""Weights of one file: protobuf ends at 2 GiB, and the graph itself needs some."""


def require_room(modules: Sequence[torch.nn.Module], what: str, instead: str = "take a smaller model") -> None:
    """Refuse, before anything is computed, what cannot be one file.

    Weights beside the graph would load, but all that names a model by its file, from a bundle's checksums to the keys
    of engines, would no longer see them change.

    Args:
        what, instead: Name the model, and what to do, in the message.
    Raises:
        ExportError: the modules' weights pass `MAX_BYTES` as float32.
    """
    size = 4 * sum(parameter.numel() for module in modules for parameter in module.parameters())
    if size > MAX_BYTES:
        raise ExportError(
            f"{what} has {size / 1e9:.1f} GB of weights; expected at most {MAX_BYTES / 1e9:.1f} GB, which is all that "
            f"one ONNX file holds; {instead}"
        )


def trace(
    network: torch.nn.Module,
    examples: Mapping[str, torch.Tensor],
    free: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    what: str,
    opset: int = OPSET,
    least: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Export a network by tracing it once; it is left in evaluation mode.

    The graph is simplified by onnxscript's own passes: constants folded, unused nodes removed, equal weights held once.

    Args:
        network: On the CPU; takes its inputs by position, in the order of `examples`.
        examples: Input name → a tensor of any values. A free axis must be 2 or longer there: 1 counts as a constant.
        free: Input name → axis → its name. Axes of one name have one length.
        outputs: Names, in the order of what the network returns.
        what: Names the model in messages.
        opset: At least 17.
        least: Axis name → the least length that the trace must hold for; 1 where it is absent.
    Raises:
        BackendMissing: onnx or onnxscript is not installed.
        ExportError: the exporter refuses the network, an axis came out fixed, or the opset is too old.
    """
    require_onnx()
    import torch
    from onnx_ir.passes.common import DeduplicateInitializersPass
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    if opset < MIN_OPSET:
        raise ExportError(f"{what}: opset is {opset}; expected at least {MIN_OPSET}, leave it at {OPSET}")
    names = {name for named in free.values() for name in named.values()}
    axes = {name: torch.export.Dim(name, min=(least or {}).get(name, 1)) for name in names}
    shapes: list[Any] = [{axis: axes[name] for axis, name in free.get(each, {}).items()} for each in examples]
    *named, last = inspect.signature(network.forward).parameters.values()
    if last.kind is inspect.Parameter.VAR_POSITIONAL:
        shapes[len(named) :] = [tuple(shapes[len(named) :])]
    network.eval()
    try:
        with quiet(), torch.no_grad():
            # Two steps: given a module, torch.onnx fixes the axes that it cannot keep free, and says nothing.
            traced = torch.export.export(
                network,
                tuple(examples.values()),
                dynamic_shapes=tuple(shapes),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            program = torch.onnx.export(
                traced,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(examples),
                output_names=list(outputs),
                external_data=False,
                optimize=False,  # its rewriter takes minutes for a detector; runtimes do the same at load
            )
            assert program is not None  # so with dynamo
            fold_constants(program.model)
            remove_unused_nodes(program.model)
            DeduplicateInitializersPass()(program.model)  # a model's tied weights
            model = program.model_proto
    except Exception as error:  # torch.export, torch.onnx and onnxscript have no common error class
        raise ExportError(f"{what} cannot be exported: {first_line(error)}; report it") from error
    _name_axes(model.graph, free, what)
    return model


def _name_axes(graph: onnx.GraphProto, free: Mapping[str, Mapping[int, str]], what: str) -> None:
    """Free axes by their own names instead of the tracer's."""
    names = {}
    for value in graph.input:
        for axis, name in free.get(value.name, {}).items():
            size = value.type.tensor_type.shape.dim[axis]
            if not size.dim_param:
                raise ExportError(f"{what} was exported for a {name} of {size.dim_value} only; expected any, report it")
            names[size.dim_param] = name
    del graph.value_info[:]  # inferred anew by whoever reads the file
    for value in [*graph.input, *graph.output]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
