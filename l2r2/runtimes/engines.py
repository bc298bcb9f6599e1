"""Engines built ahead, into a cache that sessions then open."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from l2r2.errors import ConfigError
from l2r2.runtimes import tensorrt_engine, tensorrt_rtx_engine
from l2r2.runtimes.cuda_device import Cuda
from l2r2.runtimes.engine_cache import EngineCache, EngineKey, Progress
from l2r2.runtimes.profiles import ShapeProfile
from l2r2.runtimes.sessions import ENGINES, check_names, load_runtime


def build_ahead(
    model: Path,
    runtime: str,
    cache: Path,
    *,
    architectures: Sequence[str] = (),
    precision: str = "fp32",
    pins: Sequence[str] = (),
    profile: ShapeProfile | None = None,
    device: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Build the engines of a model that are not in the cache yet, one a GPU architecture. Never on the request path.

    Args:
        model: ONNX.
        runtime: tensorrt, for the GPU that is here; or tensorrt-rtx, for any, on a machine with or without one.
        architectures: Such as SM89; for tensorrt-rtx at least one, for tensorrt none.
        precision, pins: For tensorrt 10 what is built; for the others what the model already is.
        progress: Told how far the one at hand is.
    Returns:
        The engines, in order.
    Raises:
        ConfigError: the runtime has no engines, or architectures, shapes or pins do not fit.
        BackendMissing, BackendError, ArtifactError: from the builder or the cache.
    """
    check_names(runtime, precision)
    if runtime not in ENGINES:
        raise ConfigError(f"runtime {runtime} has no engines to build; expected one of {', '.join(ENGINES)}")
    version = load_runtime(runtime).__version__
    if runtime == "tensorrt":
        if architectures:
            raise ConfigError(f"TensorRT builds for the GPU that is here only; got {', '.join(architectures)}")
        architectures = [Cuda(device).architecture]
    elif not architectures:
        known = ", ".join(tensorrt_rtx_engine.known_capabilities())
        raise ConfigError(f"TensorRT-RTX builds for named GPU architectures; expected one or more of {known}")

    def build(architecture: str, out: Path, told: Progress | None) -> None:
        if runtime == "tensorrt-rtx":
            tensorrt_rtx_engine.build_engine(model, out, [architecture], profile, told)
            return
        Cuda(device).enter()
        tensorrt_engine.build_engine(
            model,
            out,
            precision=precision,
            pins=pins,
            profile=profile,
            timing_cache=cache / f"timing-{version}-{architecture}",
            progress=told,
        )

    store = EngineCache(cache)
    return [
        store.get_or_build(
            EngineKey.of(model, runtime, version, name, precision, pins, profile), partial(build, name), progress
        )
        for name in architectures
    ]
