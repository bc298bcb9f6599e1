"""ONNX Runtime: on the CPU, and through its CUDA and TensorRT providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from l2r2.errors import ArtifactError, BackendError, ConfigError
from l2r2.runtimes.packages import first_line, require
from l2r2.runtimes.profiles import ShapeProfile

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class Gpu:
    """How a session runs on an NVIDIA GPU.

    Attributes:
        provider: CUDA or TENSORRT.
        device: Index.
        precision: fp32 keeps TensorFloat-32 off. CUDA takes the precision from the file.
        cache: Where the TensorRT provider keeps its engines; None: nowhere.
        profile: Shapes that the TensorRT provider builds for, when the session is opened.
    """

    provider: str
    device: int = 0
    precision: str = "fp32"
    cache: Path | None = None
    profile: ShapeProfile | None = None


def load_onnx_runtime(provider: str = CPU) -> ModuleType:
    """The package.

    Raises:
        BackendMissing: it is not installed.
        BackendError: this build of it lacks the provider.
    """
    ort = require("onnxruntime", "ONNX Runtime", "serve")
    there = ort.get_available_providers()
    if provider not in there:
        raise BackendError(
            f"this ONNX Runtime ({ort.__version__}) has no {provider}, only {', '.join(there)}; "
            "run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        )
    return ort


class OnnxRuntimeSession:
    """A model file loaded once; `infer` may be called from several threads.

    Attributes:
        inputs: Tensor name → shape; a string is a free axis.
        outputs: Tensor names.
    """

    def __init__(self, path: Path, threads: int = 1, gpu: Gpu | None = None) -> None:
        """Load a model.

        Args:
            threads: Of one inference. With as many callers as cores, 1 is the fastest.
            gpu: None: the CPU.
        Raises:
            BackendMissing: ONNX Runtime is not installed.
            BackendError: this build of it has no such provider, or the provider does not start here.
            ConfigError: the TensorRT provider has no shapes to build for.
            ArtifactError: the file is missing or no model.
        """
        ort = load_onnx_runtime(CPU if gpu is None else gpu.provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A pattern holds a second copy of every activation's memory: 180 MB for U²-Netp, and no quicker.
        options.enable_mem_pattern = False
        # Idle threads that spin take the core from whoever has work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [CPU] if gpu is None else _providers(gpu)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has no common error class
            raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
        if gpu is not None and gpu.provider not in self._session.get_providers():
            raise BackendError(f"ONNX Runtime's {gpu.provider} does not start here; check the NVIDIA driver and CUDA")
        self.inputs: dict[str, list[int | str]] = {node.name: node.shape for node in self._session.get_inputs()}
        self.outputs: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())
        free = [name for name, shape in self.inputs.items() if any(not isinstance(axis, int) for axis in shape)]
        if gpu is not None and gpu.provider == TENSORRT and free and gpu.profile is None:
            raise ConfigError(f"{path} has free axes in {', '.join(free)}; give a shape profile to build engines for")

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once.

        Raises:
            BackendError: the feed does not fit the model, or the runtime failed.
        """
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feed)), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error


def _providers(gpu: Gpu) -> list[str | tuple[str, dict[str, str]]]:
    """The provider, what takes over the operators that it lacks, and their options."""
    device = {"device_id": str(gpu.device)}
    cuda = (CUDA, {**device, "use_tf32": "0"})
    if gpu.provider == CUDA:
        return [cuda, CPU]
    options = dict(device)
    if gpu.precision != "fp32":
        options[f"trt_{gpu.precision}_enable"] = "1"
    if gpu.cache is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(gpu.cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(gpu.cache),
        }
    if gpu.profile is not None:
        for bound in ("min", "opt", "max"):
            options[f"trt_profile_{bound}_shapes"] = ",".join(
                f"{name}:{'x'.join(map(str, getattr(shapes, bound)))}" for name, shapes in gpu.profile.inputs.items()
            )
    return [(TENSORRT, options), cuda, CPU]
