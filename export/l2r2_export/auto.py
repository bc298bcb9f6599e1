"""Which deployment is best on this device: runtimes × precisions × threads × batch, tried, proven, measured, picked."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from l2r2.bundle import Bundle, add_deployment
from l2r2.errors import ExportError, L2R2Error
from l2r2.images import Photograph
from l2r2.machine import available_cores
from l2r2.manifest import Deployment, Precision
from l2r2.recognizer import Recognizer
from l2r2.runtimes import why_not
from l2r2_export.deploy import Choice, Lowered, certify, lower, side_of, staged
from l2r2_export.yardstick import OnStep, Yardstick

PHOTOGRAPHS = 16
"""That each setting is measured with."""

ROUNDS = 3
"""Of measuring, all settings in each: a neighbour's load falls on all alike."""

BATCHES = (1, 4, 8)

CANDIDATES: Mapping[str, Sequence[Precision]] = MappingProxyType(
    {
        "onnxruntime": ("int8",),
        "openvino": ("fp32", "bf16", "fp16", "int8"),
        "onnxruntime-cuda": ("fp32", "fp16"),
        "onnxruntime-tensorrt": ("fp32", "fp16"),
        "tensorrt": ("fp32", "fp16", "bf16", "int8"),
        "tensorrt-rtx": ("fp32", "fp16", "int8"),
    }
)
"""Runtime → precisions worth trying; ONNX Runtime on a CPU computes FP16 by casting, slower than FP32."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted of a deployment.

    Attributes:
        latency_ms: Most, at the median, from encoded photographs to answers.
        throughput: Least, photographs a second with all cores at work.
        accuracy_drop: Most that accuracy may fall on the validation slice, in points.
    """

    latency_ms: float | None = None
    throughput: float | None = None
    accuracy_drop: float = 0.5


@dataclass(frozen=True, slots=True)
class Tried:
    """One setting of one deployment, measured here.

    Attributes:
        size_px: The localizer's input; None: a detector's, which varies.
        threads: Of one inference; as many inferences at once as cores allow.
        batch: Photographs at once.
        latency_ms: Median of one call.
        throughput: Photographs a second, median of the rounds.
        drop: Points of accuracy lost on the validation slice; below 0 where it was gained.
    """

    name: str
    size_px: int | None
    threads: int
    batch: int
    latency_ms: float
    throughput: float
    drop: float


@dataclass(frozen=True)
class Search:
    """What was tried.

    Attributes:
        picked: One of `tried`.
        tried: In the order of trying.
        refused: Deployment → why it was not measured.
        deployment: Picked.
        log: As `Lowered.log`, of the picked one.
    """

    picked: Tried
    tried: Sequence[Tried]
    refused: Mapping[str, str]
    deployment: Deployment
    log: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    deployment: Deployment
    size_px: int | None
    lowered: Lowered | None
    opened: Callable[[Deployment, int], Recognizer]


def deploy_best(
    bundle: Bundle,
    yardstick: Yardstick,
    goal: Goal,
    *,
    choices: Sequence[Choice] | None = None,
    batches: Sequence[int] = BATCHES,
    on_step: OnStep = lambda _what, _done, _total: None,
) -> tuple[Bundle, Search]:
    """Try, keep what passes parity, measure, and let the best for the goal serve.

    Args:
        choices: What to try beside the reference; None: all that runs here.
    Raises:
        ExportError: nothing reaches the goal; the message says what came nearest. The bundle is as it was.
        ArtifactError: the bundle cannot be written.
    """
    with ExitStack() as stack:
        candidates, refused = _prepare(bundle, yardstick, all_choices() if choices is None else choices, stack, on_step)
        tried = _measure(candidates, yardstick.opened[:PHOTOGRAPHS], batches, on_step)
        picked = pick([each for row in tried.values() for each in row], goal)
        found = next(c for c, row in zip(candidates, tried.values(), strict=True) if picked in row)
        deployment = _for_batch(found.deployment, picked.batch).model_copy(update={"threads": picked.threads})
        files = {} if found.lowered is None else found.lowered.files
        added = add_deployment(bundle, deployment, files, serving=True)
        log = {} if found.lowered is None else found.lowered.log
    return added, Search(picked, [each for row in tried.values() for each in row], refused, deployment, log)


def all_choices() -> list[Choice]:
    """All that is worth trying on this device."""
    choices = []
    for runtime, precisions in CANDIDATES.items():
        if why_not(runtime) is not None:
            continue
        for precision in precisions:
            build = runtime.startswith("tensorrt")
            choices.append(Choice(runtime, precision, build=build))
    return choices


def pick(tried: Sequence[Tried], goal: Goal) -> Tried:
    """The best of those that reach the goal.

    With a bound on latency alone: the one that loses least accuracy, then the one of most throughput. Else the one of
    most throughput, then of least latency.

    Raises:
        ExportError: none reaches it.
    """
    fit = [
        each
        for each in tried
        if each.drop <= goal.accuracy_drop
        and (goal.latency_ms is None or each.latency_ms <= goal.latency_ms)
        and (goal.throughput is None or each.throughput >= goal.throughput)
    ]
    if not fit:
        raise ExportError(_nearest(tried, goal))
    if goal.latency_ms is not None and goal.throughput is None:
        return min(fit, key=lambda each: (each.drop, -each.throughput))
    return max(fit, key=lambda each: (each.throughput, -each.latency_ms))


def _nearest(tried: Sequence[Tried], goal: Goal) -> str:
    parts = {"latency_ms": "at most {:g} ms", "throughput": "at least {:g} photographs/s"}
    wanted = [text.format(getattr(goal, name)) for name, text in parts.items() if getattr(goal, name) is not None]
    wanted.append(f"at most {goal.accuracy_drop:g} points lost")
    kept = [each for each in tried if each.drop <= goal.accuracy_drop] or list(tried)
    quickest, most = min(kept, key=lambda t: t.latency_ms), max(kept, key=lambda t: t.throughput)
    return (
        f"nothing reaches {', '.join(wanted)}; least latency: {quickest.name} {quickest.latency_ms:.1f} ms; most "
        f"throughput: {most.name} {most.throughput:.1f} photographs/s ({most.drop:.1f} points lost). The bundle is as "
        "it was; ask for less, or train a smaller model"
    )


def _for_batch(deployment: Deployment, batch: int) -> Deployment:
    """OpenVINO compiled for batches of 1 runs larger ones one by one; for those it is compiled for any."""
    models = deployment.models
    if batch > 1 and deployment.runtime == "openvino":
        models = {stage: model.model_copy(update={"shapes": {}}) for stage, model in models.items()}
    return deployment.model_copy(update={"batch": batch, "models": models})


def _prepare(
    bundle: Bundle, yardstick: Yardstick, choices: Sequence[Choice], stack: ExitStack, on_step: OnStep
) -> tuple[list[_Candidate], dict[str, str]]:
    """The reference and every choice that passes parity, each in a copy of the bundle that lasts as long as `stack`."""
    own = side_of(bundle)
    reference = bundle.manifest.reference
    candidates = [_Candidate(reference, own, None, bundle.open)]
    refused = {}
    for choice in choices:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            lowered = lower(bundle, yardstick, choice, folder, on_step=on_step)
            there = stack.enter_context(staged(bundle, lowered))
            deployment = certify(there, lowered.deployment, yardstick, on_step)
        except L2R2Error as error:
            refused[_label(choice, own)] = str(error)
            continue
        candidates.append(_Candidate(deployment, choice.size_px or own, lowered, there.open))
    return candidates, refused


def _label(choice: Choice, own: int | None) -> str:
    return choice.name if choice.size_px in {None, own} else f"{choice.name}, localizer at {choice.size_px} px"


def _measure(
    candidates: Sequence[_Candidate],
    photographs: Sequence[Callable[[], Photograph]],
    batches: Sequence[int],
    on_step: OnStep,
) -> dict[int, list[Tried]]:
    """Candidate's place → its settings."""
    cores = available_cores()
    threads = sorted({1, cores})
    settings = [(place, t, b) for place in range(len(candidates)) for t in threads for b in batches]
    opened = {
        (place, t, many): candidates[place].opened(_for_batch(candidates[place].deployment, 2 if many else 1), t)
        for place in range(len(candidates))
        for t in threads
        for many in {b > 1 for b in batches}
    }
    seen: dict[tuple[int, int, int], list[tuple[list[float], float]]] = {setting: [] for setting in settings}
    for recognizer in opened.values():
        recognizer.recognize([photographs[0]()])
    for number in range(ROUNDS):
        for done, setting in enumerate(settings, start=1):
            place, t, b = setting
            seen[setting].append(_run(opened[place, t, b > 1], photographs, b, max(1, cores // t)))
            on_step("measuring", number * len(settings) + done, ROUNDS * len(settings))
    tried: dict[int, list[Tried]] = {place: [] for place in range(len(candidates))}
    for (place, t, b), rounds in seen.items():
        candidate = candidates[place]
        tried[place].append(
            Tried(
                name=candidate.deployment.name,
                size_px=candidate.size_px,
                threads=t,
                batch=b,
                latency_ms=float(np.median([ms for times, _ in rounds for ms in times])),
                throughput=float(np.median([rate for _, rate in rounds])),
                drop=-100 * candidate.deployment.decisions.get("accuracy_change", 0.0) if place else 0.0,
            )
        )
    return tried


def _run(
    recognizer: Recognizer, photographs: Sequence[Callable[[], Photograph]], batch: int, workers: int
) -> tuple[list[float], float]:
    """Milliseconds of each call one after another, and photographs a second with all workers at it."""
    parts = [photographs[i : i + batch] for i in range(0, len(photographs), batch)]

    def call(part: Sequence[Callable[[], Photograph]]) -> float:
        start = time.perf_counter()
        recognizer.recognize([opened() for opened in part])
        return (time.perf_counter() - start) * 1000

    times = [call(part) for part in parts[: max(1, len(parts) // 2)]]
    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        list(pool.map(call, parts))
        return times, len(photographs) / (time.perf_counter() - start)
