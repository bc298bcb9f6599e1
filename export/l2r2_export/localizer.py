"""The packaged U²-Netp, rewritten: from one photograph of 320² at a time to batches of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from l2r2.errors import ArtifactError, BackendError, ExportError
from l2r2_export.graphs import IR_VERSION, OPSET, first_line, require_onnx, save_checked

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "saliency"


def export_saliency(source: Path, path: Path, size_px: int) -> None:
    """Write U²-Netp's graph anew and run it once.

    Of seven outputs the first is kept. Its Resize nodes take their sizes from Shape nodes, so freeing the declared axes
    frees the graph. It takes `images`, "batch 3 height width" float32, and gives `saliency`, "batch 1 height width"
    in [0, 1].

    Args:
        source: The file as its package ships it: opset 11, fixed 1 × 3 × 320 × 320.
        size_px: Height and width that it will be used at, tried before anything is written.
    Raises:
        BackendMissing: onnx is not installed.
        ArtifactError: the source is missing or no model, or the place cannot be written.
        ExportError: the source has another shape, cannot be converted, or does not run at that size.
    """
    require_onnx()
    import onnx
    from onnx import version_converter

    try:
        model = onnx.load(str(source))
    except Exception as error:  # an OSError or protobuf's own
        raise ArtifactError(f"{source} is no readable ONNX model: {first_line(error)}; fetch it again") from error
    graph = model.graph
    if len(graph.input) != 1 or not graph.output:
        raise ExportError(
            f"{source} has {len(graph.input)} inputs and {len(graph.output)} outputs; expected one input and "
            "saliency as the first output, as U²-Net has"
        )
    _prune(graph)
    _rename(graph, {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT})
    _free_axes(graph)
    try:
        model = version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own
        raise ExportError(f"{source} cannot be converted to opset {OPSET}: {first_line(error)}; report it") from error
    model.ir_version = max(model.ir_version, IR_VERSION)
    del model.graph.value_info[:]  # inferred for the fixed axes
    _try(model, size_px, source)
    save_checked(model, path, f"localizer {source.name}")


def _prune(graph: onnx.GraphProto) -> None:
    """Keep the first output and what it is computed from."""
    del graph.output[1:]
    needed = {graph.output[0].name}
    kept = []
    for node in reversed(graph.node):  # nodes are in the order in which they compute
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(tensor, tensor) for tensor in tensors]


def _free_axes(graph: onnx.GraphProto) -> None:
    from onnx import TensorProto, helper

    for value, name, channels in ((graph.input[0], INPUT, 3), (graph.output[0], OUTPUT, 1)):
        shape: list[str | int | None] = ["batch", channels, "height", "width"]
        value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _try(model: onnx.ModelProto, size_px: int, source: Path) -> None:
    import tempfile

    import onnx

    from l2r2.runtimes import OnnxRuntimeSession

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "saliency.onnx"
        onnx.save(model, str(file))
        try:
            images = np.zeros((2, 3, size_px, size_px), np.float32)
            saliency = OnnxRuntimeSession(file).infer({INPUT: images})[OUTPUT]
        except (ArtifactError, BackendError) as error:
            raise ExportError(f"{source} does not run at {size_px} px once rewritten: {error}") from error
    if saliency.shape != (2, 1, size_px, size_px):
        raise ExportError(
            f"{source} gives saliency {saliency.shape} once rewritten; expected {(2, 1, size_px, size_px)}, report it"
        )
