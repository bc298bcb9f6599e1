"""Building TensorRT engines, 10 and 11, for the GPU that is here. Written to the documented API; it needs a GPU.

TensorRT 10 takes the precision from flags and leaves each layer to it, but for those that are pinned. TensorRT 11 takes
the model's own types: half precision, quantization and what is kept in float32 are then in the ONNX file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from l2r2.errors import BackendError, ConfigError
from l2r2.files import whole_file
from l2r2.runtimes.engine_cache import Progress
from l2r2.runtimes.packages import require
from l2r2.runtimes.profiles import ShapeProfile
from l2r2.runtimes.tensorrt_building import build, weakly_typed

TITLE = "TensorRT"
FLAGS = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8",)}
"""Precision → TensorRT 10's flags. int8 needs a model with Q/DQ nodes; what is between them stays in float32."""


def load_tensorrt() -> ModuleType:
    """The package.

    Raises:
        BackendMissing: it is not installed.
    """
    return require("tensorrt", TITLE, "tensorrt")


def build_engine(
    model: Path,
    out: Path,
    *,
    precision: str = "fp32",
    pins: Sequence[str] = (),
    profile: ShapeProfile | None = None,
    timing_cache: Path | None = None,
    workspace_bytes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Build an engine for the GPU that is here. Never call it on the request path.

    The engine runs on that kind of GPU and that version of TensorRT only.

    Args:
        model: ONNX.
        out: The engine, as TensorRT writes it.
        precision: fp32, fp16, bf16 or int8.
        pins: Names of layers (the ONNX nodes') that compute in float32 whatever the precision.
        profile: Needed for inputs with free axes.
        timing_cache: What was measured before, read and written; makes the next build quicker and alike.
        workspace_bytes: GPU memory that a layer may use besides; None: all there is.
        progress: Told how far it is; what it raises ends the build.
    Raises:
        BackendMissing: TensorRT is not installed.
        BackendError: the model cannot be parsed or built; or TensorRT 11 was given pins.
        ConfigError: the profile does not fit the inputs, or a pin is no layer.
        ArtifactError: the place cannot be written.
    """
    trt = load_tensorrt()

    def configure(network: Any, config: Any) -> None:
        if workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        if timing_cache is not None:
            use_timing_cache(config, timing_cache)
        set_precision(trt, network, config, precision, pins)

    config = build(trt, TITLE, model, out, profile, configure, progress)
    if timing_cache is not None:
        with whole_file(timing_cache) as beside:
            beside.write_bytes(config.get_timing_cache().serialize())


def use_timing_cache(config: Any, path: Path) -> None:
    """Start from the measurements of earlier builds; from none if they are of another GPU or version."""
    earlier = path.read_bytes() if path.is_file() else b""
    if not earlier or not config.set_timing_cache(config.create_timing_cache(earlier), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def set_precision(trt: ModuleType, network: Any, config: Any, precision: str, pins: Sequence[str]) -> None:
    """Set what the engine computes in, where that is not the model's own matter.

    Raises:
        BackendError, ConfigError: as `build_engine`.
    """
    layers = {layer.name: layer for layer in map(network.get_layer, range(network.num_layers))}
    for name in pins:
        if name not in layers:
            near = difflib.get_close_matches(name, layers, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(f"the model has no layer {name!r} to keep in float32{hint}")
    if not weakly_typed(trt):
        if pins:
            raise BackendError(
                f"{TITLE} {trt.__version__} takes each layer's type from the model and cannot pin {pins[0]!r}; "
                "export the model with these layers in float32"
            )
        return
    for flag in FLAGS[precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if pins:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for name in pins:
        layers[name].precision = trt.float32
        for index in range(layers[name].num_outputs):
            if layers[name].get_output(index).dtype in (trt.float32, trt.float16, trt.bfloat16):
                layers[name].set_output_type(index, trt.float32)
