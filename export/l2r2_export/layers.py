"""Where the time of each model goes, layer by layer, as the runtimes themselves tell it.

Layers are those that run, after the runtime has fused them; they are seldom the nodes of the file.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from l2r2.bundle import Bundle
from l2r2.config import Settings
from l2r2.errors import BackendError, ConfigError
from l2r2.fusion import Threshold
from l2r2.images import Photograph
from l2r2.localization.opening import LOCALIZER
from l2r2.manifest import Deployment
from l2r2.recognizer import Recognizer
from l2r2.runtimes.onnx_runtime import CPU, load_onnx_runtime
from l2r2.runtimes.open_vino import HINTS, openvino_core
from l2r2.runtimes.sessions import ENGINES, PROVIDERS
from l2r2.types import Session, Stage

Feed = Mapping[str, np.ndarray]

TOP = 20
"""Layers kept a stage, the dearest first."""

WARM_UPS = 2


class Layer(Settings):
    """What one inference spends in one layer: the mean over the runs."""

    name: str
    operator: str
    """In the runtime's words; empty where it does not tell."""
    ms: float
    share: float
    """Of all layers of its stage."""


class StageLayers(Settings):
    """One model, with one photograph."""

    stage: str
    ms: float
    """All layers together; the runtime's own work between them is not in it."""
    count: int
    """Layers that ran; the dearest `TOP` are listed."""
    runs: int
    layers: tuple[Layer, ...]


@runtime_checkable
class Tells(Protocol):
    """A session that times its own layers (TensorRT, TensorRT-RTX)."""

    def layer_times(self, feed: Feed, runs: int) -> dict[str, float]:
        """Layer → milliseconds an inference, in order."""
        ...


Times = dict[tuple[str, str], float]
"""Layer and operator → milliseconds an inference."""


def profile_layers(
    bundle: Bundle, deployment: Deployment, photograph: bytes, *, threads: int | None = None, runs: int = 10
) -> tuple[StageLayers, ...]:
    """Time the layers of every model of a deployment with what it is fed for a photograph.

    Timing layers slows them: the sum is more than an inference takes without.

    Args:
        photograph: Encoded; one in which something is found, so that all models run.
        threads: Of one inference; None: the deployment's.
        runs: After warming up.
    Returns:
        In the order in which the models ran.
    Raises:
        ConfigError: the runtime tells nothing of its layers.
        BackendMissing, BackendError, ArtifactError: from the runtime.
    """
    timed = _timer(deployment.runtime)
    recognizer = bundle.open(deployment, threads)
    found = []
    for stage, session, feed in record_feeds(recognizer, photograph, bundle):
        model = deployment.models[stage]
        file = bundle.folder / model.file
        times = timed(session, file, feed, model.precision, threads or deployment.threads, runs)
        found.append(_stage(stage, times, runs))
    return tuple(found)


def record_feeds(recognizer: Recognizer, photograph: bytes, bundle: Bundle) -> list[tuple[str, Session, Feed]]:
    """Stage (localizer, FG, FULL; encoder, decoder), its session and its first feed, in the order of their runs.

    FG runs only where something is found.
    """
    seen: dict[str, tuple[Session, Feed]] = {}
    for stage, owner, attribute in _sessions(recognizer):
        setattr(owner, attribute, _Recording(stage, getattr(owner, attribute), seen))
    always_both(recognizer).recognize([Photograph(photograph, bundle.manifest.images)])
    return [(stage, session, feed) for stage, (session, feed) in seen.items()]


def always_both(recognizer: Recognizer) -> Recognizer:
    """The same with a gate that nothing passes, so that FULL always runs."""
    policy = recognizer.policy
    operator = Threshold(1.0) if isinstance(policy.operator, Threshold) else policy.operator
    return replace(recognizer, policy=replace(policy, operator=operator, threshold=1.0))


def layers_csv(stages: Sequence[StageLayers]) -> str:
    """One row a layer: stage, rank, layer, operator, ms, share."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("stage", "rank", "layer", "operator", "ms", "share"))
    for stage in stages:
        for rank, layer in enumerate(stage.layers, start=1):
            table.writerow((stage.stage, rank, layer.name, layer.operator, f"{layer.ms:.4f}", f"{layer.share:.4f}"))
    return text.getvalue()


def layers_text(stages: Sequence[StageLayers], top: int = TOP) -> str:
    """A table a stage, for people."""
    lines = []
    for stage in stages:
        lines += ["", f"{stage.stage}: {stage.count} layers, {stage.ms:.2f} ms", f"{'ms':>9} {'share':>6}  layer"]
        for layer in stage.layers[:top]:
            name = layer.name if len(layer.name) <= 70 else f"{layer.name[:33]} … {layer.name[-33:]}"
            lines.append(f"{layer.ms:9.3f} {100 * layer.share:5.1f}%  {name} ({layer.operator or '?'})")
    return "\n".join(lines)


class _Recording:
    """A session that keeps the first feed that it is given."""

    def __init__(self, stage: str, session: Session, seen: dict[str, tuple[Session, Feed]]) -> None:
        self._stage, self._session, self._seen = stage, session, seen

    def infer(self, feed: Feed) -> Feed:
        self._seen.setdefault(self._stage, (self._session, dict(feed)))
        return self._session.infer(feed)


def _sessions(recognizer: Recognizer) -> Iterator[tuple[str, object, str]]:
    """Stage, and the object and attribute that hold its session."""
    for stage in Stage:
        yield str(stage), recognizer.classifiers[stage], "session"
    localizer = recognizer.localizer
    yield LOCALIZER, localizer, "_session"
    segmenter = getattr(localizer, "_segmenter", None)
    if segmenter is not None:
        yield "encoder", segmenter, "_encoder"
        yield "decoder", segmenter, "_decoder"


def _timer(runtime: str) -> Callable[[Session, Path, Feed, str, int, int], Times]:
    if runtime == "openvino":
        return _openvino
    if runtime in ENGINES:
        return _tensorrt
    if runtime in ("onnxruntime", *PROVIDERS):
        provider = PROVIDERS.get(runtime, CPU)
        return lambda _session, file, feed, _precision, threads, runs: _onnx_runtime(
            file, feed, provider, threads, runs
        )
    known = ("onnxruntime", *PROVIDERS, "openvino", *ENGINES)
    raise ConfigError(f"runtime {runtime} tells nothing of its layers; expected one of {', '.join(known)}")


def _onnx_runtime(file: Path, feed: Feed, provider: str, threads: int, runs: int) -> Times:
    """By ONNX Runtime's own profiler. On a GPU it times what a kernel's launch takes, unless built with CUPTI."""
    ort = load_onnx_runtime(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "layers")
        session = ort.InferenceSession(str(file), options, providers=list(dict.fromkeys((provider, CPU))))
        for _ in range(WARM_UPS + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            layer = name.removesuffix("_kernel_time")
            durations[layer, event["args"].get("op_name", "")].append(event["dur"] / 1000)
    # A node inside a loop has several events a run; those of the warm-ups come first.
    return {
        layer: sum(values[len(values) * WARM_UPS // (WARM_UPS + runs) :]) / runs for layer, values in durations.items()
    }


def _openvino(_session: Session, file: Path, feed: Feed, precision: str, threads: int, runs: int) -> Times:
    """By OpenVINO's performance counters, in one stream."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": True,
    }
    request = openvino_core().compile_model(str(file), "CPU", settings).create_infer_request()
    total: dict[tuple[str, str], float] = defaultdict(float)
    for run in range(WARM_UPS + runs):
        request.infer(dict(feed))
        for info in request.profiling_info if run >= WARM_UPS else ():
            if info.status == info.Status.EXECUTED:
                total[info.node_name, f"{info.node_type} {info.exec_type}"] += info.real_time.total_seconds() * 1000
    return {layer: ms / runs for layer, ms in total.items()}


def _tensorrt(session: Session, _file: Path, feed: Feed, _precision: str, _threads: int, runs: int) -> Times:
    """By TensorRT's IProfiler. A layer is named after all the nodes that were fused into it."""
    if not isinstance(session, Tells):
        raise BackendError(f"{type(session).__name__} does not time its layers; expected a session of TensorRT")
    for _ in range(WARM_UPS):
        session.infer(feed)
    return {(name, ""): ms for name, ms in session.layer_times(feed, runs).items()}


def _stage(stage: str, times: Times, runs: int) -> StageLayers:
    total = sum(times.values())
    dearest = sorted(times.items(), key=lambda pair: -pair[1])[:TOP]
    return StageLayers(
        stage=stage,
        ms=total,
        count=len(times),
        runs=runs,
        layers=tuple(
            Layer(name=name, operator=operator, ms=ms, share=ms / total if total else 0.0)
            for (name, operator), ms in dearest
        ),
    )
