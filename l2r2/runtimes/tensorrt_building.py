"""What building has in common in TensorRT and TensorRT-RTX, whose Python modules share one API."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from l2r2.errors import BackendError, ConfigError
from l2r2.files import whole_file
from l2r2.runtimes.engine_cache import Progress
from l2r2.runtimes.profiles import ShapeProfile

logger = logging.getLogger(__name__)


@functools.cache
def logger_of(trt: ModuleType) -> Any:
    """The module's one logger of this process: TensorRT keeps the first that it is given and ignores the others.

    Its `errors` are the last error lines; `said()` joins them.
    """

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=4)

        def said(self) -> str:
            return " ".join("; ".join(self.errors).split()) or "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())
            level = logging.WARNING if severity == trt.ILogger.WARNING else logging.DEBUG
            logger.log(level, "%s: %s", trt.__name__, message.strip())

    return Logger()


def build(
    trt: ModuleType,
    title: str,
    model: Path,
    out: Path,
    profile: ShapeProfile | None,
    configure: Callable[[Any, Any], None],
    progress: Progress | None,
) -> Any:
    """Build an engine, whole or not at all.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        configure: Sets what the two differ in, on the network and the builder's configuration.
    Returns:
        The builder's configuration, with the timing cache that was filled.
    Raises:
        BackendError: the model cannot be parsed, or the build failed; with TensorRT's own reasons.
        ConfigError: the profile does not fit the model's inputs.
        ArtifactError: the place cannot be written.
    """
    log = logger_of(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    # Explicit batches are the only kind since TensorRT 10; types are strict wherever the precision flags are gone.
    flags = 0 if weakly_typed(trt) else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        reasons = [_reason(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BackendError(f"{title} cannot read {model}: {'; '.join(reasons) or 'no reason given'}")
    config = builder.create_builder_config()
    # TensorFloat-32 is on by default, and is less than the float32 that the model was checked in.
    config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(builder, config, network, profile)
    configure(network, config)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        raise monitor.raised
    if engine is None:
        raise BackendError(f"{title} cannot build {model}: {log.said()}")
    with whole_file(out) as beside:
        beside.write_bytes(engine)
    return config


def weakly_typed(trt: ModuleType) -> bool:
    """Whether precision is a flag of the builder (TensorRT 10) or lies in the model (TensorRT 11, TensorRT-RTX)."""
    return hasattr(trt.BuilderFlag, "FP16")


def _reason(error: Any) -> str:
    node = f"node {error.node()} ({error.node_operator() or 'no operator'}) " if error.node() >= 0 else ""
    return f"{node}{error.code().name}: {error.desc().strip()}"


def _add_profile(builder: Any, config: Any, network: Any, profile: ShapeProfile | None) -> None:
    shapes = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    ranges = {} if profile is None else profile.inputs
    unknown, free = set(ranges) - set(shapes), {name for name, shape in shapes.items() if -1 in shape} - set(ranges)
    if unknown or free:
        raise ConfigError(
            f"the shape profile names {sorted(ranges)}, the model's inputs are {shapes} (-1 is free); "
            f"expected a range for each input with a free axis and for no other name"
        )
    if not ranges:
        return
    added = builder.create_optimization_profile()
    for name, wanted in ranges.items():
        fits = len(wanted.min) == len(shapes[name]) and all(
            axis in (-1, low) and axis in (-1, high)
            for axis, low, high in zip(shapes[name], wanted.min, wanted.max, strict=True)
        )
        if not fits:
            raise ConfigError(f"the shape profile has {wanted} for {name}; expected shapes that fit {shapes[name]}")
        added.set_shape(name, wanted.min, wanted.opt, wanted.max)
    config.add_optimization_profile(added)


def _monitor(trt: ModuleType, progress: Progress | None) -> Any:
    """Turns TensorRT's nested phases into one share that only grows. `raised` is what `progress` raised, if it did."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # name → parent, steps done, steps
            self._share = 0.0
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases[name] = (parent, 0, max(steps, 1))
            self._tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                if name in self._phases:
                    parent, _, steps = self._phases[name]
                    self._phases[name] = (parent, step + 1, steps)
            self._tell(name)
            return self.raised is None  # false ends the build

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.pop(name, None)

        def _tell(self, name: str) -> None:
            if progress is None or self.raised is not None:
                return
            try:
                with self._lock:
                    self._share = max(self._share, min(1.0, self._done(name)))
                    share = self._share
                progress(name, share)
            except BaseException as error:  # noqa: BLE001  also Ctrl-C; TensorRT's own code cannot let it through
                self.raised = error

        def _done(self, name: str) -> float:
            """The share of the whole that is done, seen from one phase: each is a step of the phase around it."""
            share, inner = 0.0, 0.0
            at: str | None = name
            while at in self._phases:
                at, done, steps = self._phases[at]
                share = inner = min(1.0, (done + inner) / steps)
            return share

    return Monitor()
