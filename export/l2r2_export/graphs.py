"""What every exported graph must be: recent enough, valid, one file, and silent about where it was made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from l2r2.errors import BackendMissing, ExportError
from l2r2.files import whole_file

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""What is written; both the exporter of torch and every supported runtime know it natively."""

MIN_OPSET = 17
"""Older ones lack LayerNormalization, and converters of other runtimes treat them as legacy."""

IR_VERSION = 8
"""The first file format that goes with opset 17 and 18. Source: ONNX, docs/Versioning.md."""


def require_onnx() -> None:
    """Raise BackendMissing with the command that installs what export needs."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendMissing(f"{error.name} is not installed; run: pip install 'l2r2[export]'") from error


def save_checked(model: onnx.ModelProto, path: Path, what: str) -> None:
    """Strip notes, check, and write one file, whole or not at all.

    Args:
        what: Names the model in messages.
    Raises:
        ExportError: the opset is too old, weights lie in other files, or the checker refuses the graph.
        ArtifactError: the place cannot be written.
    """
    import onnx

    strip_notes(model)
    opset = opset_of(model)
    if opset < MIN_OPSET:
        raise ExportError(f"{what} has opset {opset}; expected at least {MIN_OPSET}, export it with opset={OPSET}")
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer):
        raise ExportError(f"{what} keeps weights in other files; expected one file, use a model below 2 GB")
    try:
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString()
    except Exception as error:  # checker, shape inference and protobuf have no common error class
        raise ExportError(f"{what} is no valid ONNX model: {first_line(error)}; report it") from error
    with whole_file(path) as beside:
        beside.write_bytes(data)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators that a model imports; 0 where it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove stack traces and other notes: they name folders of the machine that exported, and change its digest."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    functions = [node for function in model.functions for node in function.node]
    for noted in [model, graph, *model.functions, *graph.node, *functions, *values]:
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log lines of the exporter: what matters is raised or checked."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
