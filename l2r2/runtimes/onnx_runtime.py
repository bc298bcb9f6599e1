"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from l2r2.errors import ArtifactError, BackendError, BackendMissing


class OnnxRuntimeSession:
    """A model file loaded once; `infer` may be called from several threads.

    Attributes:
        inputs: Tensor name → shape; a string is a free axis.
        outputs: Tensor names.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load a model.

        Args:
            threads: Of one inference. With as many callers as cores, 1 is the fastest.
        Raises:
            BackendMissing: ONNX Runtime is not installed.
            ArtifactError: the file is missing or no model.
        """
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin take the core from whoever has work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has no common error class
            raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime: {_first_line(error)}") from error
        self.inputs: dict[str, list[int | str]] = {node.name: node.shape for node in self._session.get_inputs()}
        self.outputs: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Raises:
            BackendError: the feed does not fit the model, or the runtime failed.
        """
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feed)), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {_first_line(error)}") from error


def _onnxruntime() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendMissing("ONNX Runtime is not installed; run: pip install 'l2r2[serve]'") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
