"""Sessions on inference runtimes, behind one protocol (`l2r2.types.Session`)."""

from l2r2.runtimes.onnx_runtime import OnnxRuntimeSession as OnnxRuntimeSession

__all__ = ["OnnxRuntimeSession"]
