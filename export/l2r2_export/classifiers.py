"""A classifier in PyTorch → ONNX with a free batch axis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from l2r2.errors import ExportError
from l2r2_export.graphs import MIN_OPSET, OPSET, first_line, quiet, require_onnx, save_checked

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "images", "logits"


def export_classifier(network: torch.nn.Module, size_px: int, path: Path, opset: int = OPSET) -> None:
    """Write a network as one ONNX file, in evaluation mode.

    The graph takes `images`, "batch 3 size_px size_px" float32, and gives `logits`, "batch k" float32.

    Args:
        network: On the CPU; its training mode is left as it was.
        size_px: Height and width of the input.
        opset: At least 17.
    Raises:
        BackendMissing: onnx or onnxscript is not installed.
        ExportError: the exporter or the checker refuses the network, or the opset is too old; nothing was written.
        ArtifactError: the place cannot be written.
    """
    require_onnx()
    import torch

    what = f"classifier {type(network).__name__}"
    if opset < MIN_OPSET:
        raise ExportError(f"{what}: opset is {opset}; expected at least {MIN_OPSET}, leave it at {OPSET}")
    training = network.training
    network.eval()
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, size_px, size_px),),  # two: one would be taken for a constant
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
            )
            assert program is not None  # so with dynamo
            model = program.model_proto
    except Exception as error:  # torch.export, torch.onnx and onnxscript have no common error class
        reason = first_line(error)
        raise ExportError(f"{what} cannot be exported at {size_px} px: {reason}; try another model") from error
    finally:
        network.train(training)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportError(f"{what} was exported for a batch of {batch.dim_value} only; expected any, try another model")
    save_checked(model, path, what)
