"""One way to open a model, whatever the runtime."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from l2r2.errors import BackendError, BackendMissing, ConfigError
from l2r2.runtimes import onnx_runtime, tensorrt_engine, tensorrt_rtx_engine
from l2r2.runtimes.cuda_device import Cuda
from l2r2.runtimes.engine_cache import EngineCache, EngineKey, check_engine
from l2r2.runtimes.onnx_runtime import Gpu, OnnxRuntimeSession, load_onnx_runtime
from l2r2.runtimes.open_vino import OpenVinoSession, load_openvino
from l2r2.runtimes.profiles import ShapeProfile
from l2r2.runtimes.tensorrt_session import TensorRtSession
from l2r2.runtimes.torch_session import TorchSession, load_torch
from l2r2.types import Session

PROVIDERS: Final = {"onnxruntime-cuda": onnx_runtime.CUDA, "onnxruntime-tensorrt": onnx_runtime.TENSORRT}
ENGINES: Final = {"tensorrt": tensorrt_engine.TITLE, "tensorrt-rtx": tensorrt_rtx_engine.TITLE}
RUNTIMES: Final = ("onnxruntime", *PROVIDERS, "openvino", *ENGINES, "torch")
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")


class RuntimeSession(Session, Protocol):
    """A session that says what it takes and gives."""

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """Tensor name → shape; a string is a free axis."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """Tensor names."""
        ...


def open_session(
    file: Path,
    runtime: str = "onnxruntime",
    *,
    threads: int = 1,
    precision: str = "fp32",
    pins: Sequence[str] = (),
    cache: Path | None = None,
    profile: ShapeProfile | None = None,
    device: int = 0,
) -> RuntimeSession:
    """Load a model in a runtime. Several threads may then infer at once.

    Args:
        file: ONNX; for openvino also IR (.xml); for torch what `save_timm` wrote; for tensorrt and tensorrt-rtx also an
            engine with its header beside it.
        runtime: One of `RUNTIMES`.
        threads: Of one inference, on a CPU.
        precision: One of `PRECISIONS`. Where it lies in the file (ONNX Runtime on CPU and CUDA), it changes nothing.
        pins: Layers that the engine keeps in float32; part of what names it.
        cache: Folder of engines, and of what ONNX Runtime's TensorRT provider and OpenVINO compile; None: nothing is
            kept. Nobody else may be able to write to it.
        profile: Shapes that the engine is built for, part of what names it; those that OpenVINO compiles for.
        device: Index of the GPU.
    Raises:
        ConfigError: no such runtime or precision, or a thread count below one.
        BackendMissing: the runtime is not installed; the message has the command.
        BackendError: it lacks a provider or a GPU, or an engine was not built ahead.
        ArtifactError: the file is missing, damaged, or of another GPU or version.
    """
    check_names(runtime, precision)
    if threads < 1:
        raise ConfigError(f"threads is {threads}; expected at least 1")
    folder = None if cache is None else cache / runtime
    if runtime == "onnxruntime":
        return OnnxRuntimeSession(file, threads)
    if runtime in PROVIDERS:
        return OnnxRuntimeSession(file, threads, Gpu(PROVIDERS[runtime], device, precision, folder, profile))
    if runtime == "openvino":
        return OpenVinoSession(file, threads, precision, folder, profile)
    if runtime == "torch":
        return TorchSession(file, threads, precision)
    package = load_runtime(runtime)
    cuda = Cuda(device)
    if file.suffix == ".onnx":
        key = EngineKey.of(file, runtime, package.__version__, cuda.architecture, precision, pins, profile)
        engine = find_engine(file, cache, key)
    else:
        engine = file
        check_engine(
            file, runtime=runtime, version=package.__version__, architecture=cuda.architecture, precision=precision
        )
    return TensorRtSession(package, ENGINES[runtime], engine, cuda)


def find_engine(file: Path, cache: Path | None, key: EngineKey) -> Path:
    """The engine of a model, which must have been built ahead.

    Raises:
        BackendError: it was not; the message has the command.
        ArtifactError: as `EngineCache.find`.
    """
    engine = None if cache is None else EngineCache(cache).find(key)
    if engine is None:
        raise BackendError(
            f"{file} has no {key.runtime} {key.version} engine for {key.architecture}, {key.precision}, shapes "
            f"{key.profile or 'fixed'} in {cache or 'any cache'}; build it ahead: "
            f"l2r2 export BUNDLE --runtime {key.runtime} --precision {key.precision} --build"
        )
    return engine


def check_names(runtime: str, precision: str = "fp32") -> None:
    """Whether l2r2 knows them.

    Raises:
        ConfigError: it does not; the message has those that it knows.
    """
    for what, name, known in (("runtime", runtime, RUNTIMES), ("precision", precision, PRECISIONS)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"there is no {what} {name!r}; {hint}expected one of {', '.join(known)}")


def load_runtime(runtime: str) -> ModuleType:
    """The package behind a runtime; its `__version__` is the runtime's.

    Raises:
        ConfigError: no such runtime.
        BackendMissing: it is not installed; the message has the command.
        BackendError: it lacks the provider.
    """
    check_names(runtime)
    if runtime in PROVIDERS:
        return load_onnx_runtime(PROVIDERS[runtime])
    return {
        "onnxruntime": load_onnx_runtime,
        "openvino": load_openvino,
        "tensorrt": tensorrt_engine.load_tensorrt,
        "tensorrt-rtx": tensorrt_rtx_engine.load_tensorrt_rtx,
        "torch": load_torch,
    }[runtime]()


def why_not(runtime: str, device: int = 0) -> str | None:
    """What keeps a runtime from running here, in one line; None: nothing does.

    Raises:
        ConfigError: no such runtime.
    """
    try:
        load_runtime(runtime)
        if runtime in ENGINES:
            Cuda(device)
        elif runtime in PROVIDERS:
            with suppress(BackendMissing):  # ONNX Runtime brings its own way to CUDA
                Cuda(device)
    except BackendError as error:
        return str(error)
    return None
