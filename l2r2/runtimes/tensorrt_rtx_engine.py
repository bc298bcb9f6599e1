"""Building TensorRT-RTX engines ahead of time for named GPUs, on a machine that has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from l2r2.errors import BackendError, ConfigError
from l2r2.runtimes.engine_cache import Progress
from l2r2.runtimes.packages import require
from l2r2.runtimes.profiles import ShapeProfile
from l2r2.runtimes.tensorrt_building import build

TITLE = "TensorRT-RTX"


def load_tensorrt_rtx() -> ModuleType:
    """The package.

    Raises:
        BackendMissing: it is not installed.
    """
    return require("tensorrt_rtx", TITLE, "tensorrt-rtx")


def known_capabilities() -> tuple[str, ...]:
    """The GPU architectures that engines can be built for, such as SM89.

    Raises:
        BackendMissing: TensorRT-RTX is not installed.
    """
    return tuple(sorted(name for name in load_tensorrt_rtx().ComputeCapability.__members__ if name.startswith("SM")))


def build_engine(
    model: Path,
    out: Path,
    capabilities: Sequence[str],
    profile: ShapeProfile | None = None,
    progress: Progress | None = None,
) -> None:
    """Build one engine for one or more GPU architectures. Needs no GPU. Never call it on the request path.

    The precision is the model's: TensorRT-RTX is strongly typed. The kernels are finished on the device, when the
    engine is first run there.

    Args:
        model: ONNX.
        out: The engine, as TensorRT-RTX writes it.
        capabilities: At least one of `known_capabilities`.
        profile: Needed for inputs with free axes.
        progress: Told how far it is; what it raises ends the build.
    Raises:
        BackendMissing: TensorRT-RTX is not installed.
        BackendError: the model cannot be parsed or built; with the parser's own reasons.
        ConfigError: no such architecture, or the profile does not fit the inputs.
        ArtifactError: the place cannot be written.
    """
    trt = load_tensorrt_rtx()
    known = known_capabilities()
    for name in capabilities:
        if name not in known:
            raise ConfigError(f"{TITLE} {trt.__version__} builds for no {name!r}; expected some of {', '.join(known)}")
    if not capabilities or len(set(capabilities)) < len(capabilities):
        raise ConfigError(f"GPU architectures are {list(capabilities)}; expected one or more of {', '.join(known)}")

    def configure(_network: Any, config: Any) -> None:
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            if not config.set_compute_capability(trt.ComputeCapability.__members__[name], index):
                raise BackendError(f"{TITLE} {trt.__version__} refuses to build for {name} among {list(capabilities)}")

    build(trt, TITLE, model, out, profile, configure, progress)
