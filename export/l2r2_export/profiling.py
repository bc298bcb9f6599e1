"""What a bundle costs on this device: stage by stage, for the whole cascade, and as a function of the gate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, model_validator

from l2r2.bundle import Bundle
from l2r2.config import ImageSettings, Settings
from l2r2.errors import ArtifactError, InputError
from l2r2.images import Photograph
from l2r2.localization.opening import LOCALIZER
from l2r2.machine import available_cores
from l2r2.manifest import REFERENCE
from l2r2.recognizer import Recognizer, locating_scale
from l2r2.runtimes.sessions import ENGINES, PROVIDERS
from l2r2.types import Prediction, Region, Stage
from l2r2.views import normalize, render
from l2r2_export.host import Energy, device_name, facts, forget_peak, gpu_memory_mb, peak_memory_mb
from l2r2_export.layers import StageLayers, always_both, profile_layers

STEPS = ("decode", "locate", "render FG", "classify FG", "render FULL", "classify FULL", "fuse")
"""In the order in which a photograph comes to them."""

ON_GPU: Final = frozenset({*PROVIDERS, *ENGINES})
"""Runtimes that run on an NVIDIA GPU."""

WARM_UPS: Final = 3
GATES: Final = (*(i / 20 for i in range(20)), 0.975, 0.99, 1.0)
"""Thresholds at which the cascade's cost is told, besides the bundle's own; calibrated confidences crowd near 1."""

Used = tuple[float | None, float | None]
"""Joules of the processor packages and of the GPU; None where the platform does not tell."""

OnStep = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""


class Timing(Settings):
    """Milliseconds; percentiles are of n photographs (or batches) after the warm-ups."""

    first_ms: float
    """The first of the warm-ups."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    warmups: int = 1


class ModelTiming(Settings):
    """One model alone, at one batch size."""

    model: str
    batch: int
    batch_ms: Timing
    images_per_s: float


class GatePoint(Settings):
    """What the cascade would cost with another gate."""

    threshold: float
    """FG answers alone above this confidence."""
    escalated: float = Field(ge=0, le=1)
    """Share of these photographs that would run FULL; nothing found included."""
    expected_ms: float
    """A photograph, by medians."""


class Profile(Settings):
    """One deployment of a bundle on one device.

    Times end when the results are on the host, so a GPU's work is in them: ONNX Runtime's `run` copies every output
    into a numpy array and waits for that, OpenVINO's `infer` is synchronous, a TensorRT session waits for its stream
    after the copy to the host, and torch runs on the CPU.
    """

    schema_version: Literal[2] = 2
    """2 added precision, parity, the device's name, callers, energy and memory of a GPU, the gate and layers."""
    bundle: str
    bundle_version: str
    device: str
    runtime: str
    precision: str
    """Asked for; a stage may run in a higher one."""
    threads: int
    """Of one inference."""
    certified: bool
    """Whether the deployment was compared with the reference, or is it."""
    parity: dict[str, float] = {}
    """How its cascade answers against the reference's, on validation photographs; empty: never compared."""
    taken: str
    """UTC, ISO 8601."""
    host: dict[str, str]
    load_ms: float | None = None
    """From the files to a recognizer; engines are built before."""
    steps: dict[str, Timing]
    """With both classifiers always run; decoding in all the scales that a photograph needs."""
    always_both: Timing
    cascade: Timing
    """With the bundle's own gate."""
    photographs_per_s: float
    """One after the other, through the cascade."""
    callers: int = 1
    """As many as usable cores."""
    photographs_per_s_together: float | None = None
    """With that many callers at once."""
    threshold: float | None = None
    """The bundle's own gate."""
    escalated: float = Field(ge=0, le=1)
    """Share of these photographs that ran FULL; nothing found included."""
    cost_ms: dict[str, float]
    """Escalated share → expected milliseconds a photograph: decode, locate, FG and that share of FULL, by medians."""
    gate: tuple[GatePoint, ...] = ()
    models: tuple[ModelTiming, ...]
    layers: tuple[StageLayers, ...] = ()
    joules_per_photograph: float | None = None
    """Of the whole processor package, neighbours included; None where the platform does not tell."""
    gpu_joules_per_photograph: float | None = None
    """Of the whole GPU, as above."""
    peak_memory_mb: float
    """Largest resident size of the process while the cascade ran, models loaded, in 10⁶ bytes."""
    gpu_memory_mb: float | None = None
    """What is in use on the GPU after the cascade and was not before, in 10⁶ bytes."""

    @property
    def name(self) -> str:
        """As in "openvino/int8, 2 threads"."""
        return f"{self.runtime}/{self.precision}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def accuracy_change(self) -> float | None:
        """Against the reference, in shares of the validation photographs; 0 for the reference; None: unknown."""
        return self.parity.get("accuracy_change", 0.0 if (self.runtime, self.precision) == REFERENCE else None)

    def same(self, other: Profile) -> bool:
        """Whether both are of one deployment, with as many threads, on one device; then the newer one counts."""
        return (self.device, self.name) == (other.device, other.name)

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, values: Any) -> Any:
        """Schema 1 knew of float32 only."""
        if not isinstance(values, Mapping) or values.get("schema_version") != 1:
            return values
        runtime = values.get("runtime", "")
        device = device_name(values.get("host", {}), runtime in ON_GPU)
        added = {"device": device, "precision": "fp32", "certified": runtime == REFERENCE[0]}
        return {**values, **added, "schema_version": 2}


def profile_bundle(
    bundle: Bundle,
    photographs: Sequence[bytes],
    *,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    batches: Sequence[int] = (1, 4, 8),
    warmups: int = WARM_UPS,
    layers: bool = False,
    device: str | None = None,
    on_step: OnStep = lambda _what, _done, _total: None,
) -> Profile:
    """Measure with encoded photographs, one at a time from bytes to answer, then each model alone.

    Args:
        photographs: At least two.
        runtime, precision: Of a deployment, compared with the reference or not; None: as the one that serves.
        threads: Of one inference; None: the deployment's.
        batches: Sizes for the models alone.
        warmups: Inferences before each measurement that do not count, at least one.
        layers: Also time the layers of each model.
        device: What to call it; None: by its processor or GPU.
    Raises:
        InputError: too few photographs, or a batch or number of warm-ups that is not positive.
        ConfigError, BackendMissing, BackendError, ArtifactError: from the bundle.
    """
    if len(photographs) < 2:
        raise InputError(f"{len(photographs)} photographs to profile with; expected at least 2")
    if not batches or min(batches) < 1:
        raise InputError(f"batches are {list(batches)}; expected positive sizes")
    if warmups < 1:
        raise InputError(f"{warmups} warm-ups; expected at least 1, the first of anything is slow")
    deployment = bundle.deployment(runtime, precision, uncertified=True)
    on_gpu, host = deployment.runtime in ON_GPU, facts()
    gpu_before = gpu_memory_mb() if on_gpu else None
    forget_peak()
    start = time.perf_counter()
    recognizer = bundle.open(deployment, threads)
    load_ms = (time.perf_counter() - start) * 1000
    run = _Runs(photographs, bundle.manifest.images, warmups, on_step)
    (both, both_ms, _), (answers, cascade_ms, used) = run.in_turn([always_both(recognizer), recognizer])
    callers = available_cores()
    together = run.together(recognizer, callers)
    peak, gpu_after = peak_memory_mb(), gpu_memory_mb() if on_gpu else None
    steps = dict(_steps(both, warmups))
    timed = run.models(recognizer, [answer.region for answer in both[warmups:]], batches)
    seen = _first_found(photographs, both[warmups:])
    processor, gpu = (_mean(joules) for joules in zip(*used[warmups:], strict=True))
    return Profile(
        bundle=bundle.manifest.name,
        bundle_version=bundle.version,
        device=device or device_name(host, on_gpu),
        runtime=deployment.runtime,
        precision=deployment.precision,
        threads=threads or deployment.threads,
        certified=deployment.name == bundle.manifest.reference.name or bool(deployment.decisions),
        parity=deployment.decisions,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host,
        load_ms=load_ms,
        steps=steps,
        always_both=_timing(both_ms[:warmups], both_ms[warmups:]),
        cascade=_timing(cascade_ms[:warmups], cascade_ms[warmups:]),
        photographs_per_s=1000 * len(photographs) / sum(cascade_ms[warmups:]),
        callers=callers,
        photographs_per_s_together=together,
        threshold=recognizer.policy.threshold,
        escalated=float(np.mean([Stage.FULL in answer.stages for answer in answers[warmups:]])),
        cost_ms={f"{share:.1f}": _cost(steps, share) for share in np.linspace(0, 1, 11)},
        gate=tuple(_gate(both[warmups:], steps, recognizer.policy.threshold)),
        models=tuple(timed),
        layers=profile_layers(bundle, deployment, seen, threads=threads) if layers else (),
        joules_per_photograph=processor,
        gpu_joules_per_photograph=gpu if on_gpu else None,
        peak_memory_mb=peak,
        gpu_memory_mb=None if gpu_before is None or gpu_after is None else max(0.0, gpu_after - gpu_before),
    )


def read_profiles(path: Path) -> list[Profile]:
    """Read what `write_profiles` wrote, perhaps on another device: one profile, or a list of them.

    Raises:
        ArtifactError: missing, or no profile.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = [Profile.model_validate(each) for each in (values if isinstance(values, list) else [values])]
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of json, of UTF-8 and of pydantic
        first = str(error).splitlines()[0]
        raise ArtifactError(f"{path} is no profile ({first}); expected a file of l2r2 profile --out") from None
    if not found:
        raise ArtifactError(f"{path} has no profile in it; expected a file of l2r2 profile --out")
    return found


def as_json(profiles: Sequence[Profile], indent: int | None = None) -> str:
    """One profile as an object, several as a list."""
    values = [profile.model_dump(mode="json") for profile in profiles]
    return json.dumps(values[0] if len(values) == 1 else values, ensure_ascii=False, indent=indent)


def as_metrics(profile: Profile) -> dict[str, float]:
    """Numbers for a tracked run, so that devices and precisions lie side by side."""
    values = {f"step/{name}/p50_ms": timing.p50_ms for name, timing in profile.steps.items()}
    values |= {f"step/{name}/p99_ms": timing.p99_ms for name, timing in profile.steps.items()}
    for name, timing in (("cascade", profile.cascade), ("always_both", profile.always_both)):
        values |= {f"{name}/{part}": value for part, value in timing.model_dump().items() if part.endswith("_ms")}
    values |= {f"model/{m.model}/batch {m.batch}/images_per_s": m.images_per_s for m in profile.models}
    values |= {f"layers/{stage.stage}/ms": stage.ms for stage in profile.layers}
    values |= {f"parity/{name}": value for name, value in profile.parity.items()}
    told = (
        "load_ms",
        "photographs_per_s",
        "photographs_per_s_together",
        "escalated",
        "accuracy_change",
        "joules_per_photograph",
        "gpu_joules_per_photograph",
        "peak_memory_mb",
        "gpu_memory_mb",
    )
    return values | {name: float(value) for name in told if (value := getattr(profile, name)) is not None}


class _Runs:
    """The photographs, and how they are answered."""

    def __init__(self, photographs: Sequence[bytes], images: ImageSettings, warmups: int, on_step: OnStep) -> None:
        self._photographs, self._images, self._warmups, self._on_step = photographs, images, warmups, on_step

    def in_turn(self, recognizers: Sequence[Recognizer]) -> list[tuple[list[Prediction], list[float], list[Used]]]:
        """Answers of each, milliseconds from bytes to answer, and energy; the warm-ups first.

        Each photograph is put to all of them in turn, so that what else the device does slows them alike.
        """
        n = len(self._photographs)
        order = [*(i % n for i in range(self._warmups)), *range(n)]
        found: list[tuple[list[Prediction], list[float], list[Used]]] = [([], [], []) for _ in recognizers]
        for number, i in enumerate(order, start=1):
            for recognizer, (answers, times, used) in zip(recognizers, found, strict=True):
                before, start = Energy.now(), time.perf_counter()
                answers += recognizer.recognize([self._photograph(i)])
                times.append((time.perf_counter() - start) * 1000)
                after = Energy.now()
                used.append((after.processor_since(before), after.gpu_since(before)))
            self._on_step("photographs", number, len(order))
        return found

    def together(self, recognizer: Recognizer, callers: int) -> float:
        """Photographs a second with so many callers at once, each of which warms up once."""
        work = max(len(self._photographs), 4 * callers)
        with ThreadPoolExecutor(callers) as pool:

            def answer(i: int) -> None:
                recognizer.recognize([self._photograph(i % len(self._photographs))])

            list(pool.map(answer, range(callers)))
            start = time.perf_counter()
            list(pool.map(answer, range(work)))
            return work / (time.perf_counter() - start)

    def models(
        self, recognizer: Recognizer, regions: Sequence[Region | None], batches: Sequence[int]
    ) -> Iterator[ModelTiming]:
        """Each model alone on real inputs, repeated to fill a batch."""
        settings = recognizer.view_settings
        some = list(range(min(len(self._photographs), 8)))
        pixels = [self._photograph(i).at(1.0) for i in some]
        scales = [locating_scale(recognizer.localizer, self._photograph(i)) for i in some]
        small = [self._photograph(i).at(scale) for i, scale in zip(some, scales, strict=True)]
        runs: dict[str, Callable[[int], object]] = {
            LOCALIZER: lambda batch: recognizer.localizer.locate([small[i % len(small)] for i in range(batch)])
        }
        for stage in Stage:
            squares = [render(pixels[i], regions[i], recognizer.views[stage], settings) for i in some]
            inputs, classifier = normalize(squares, settings), recognizer.classifiers[stage]
            runs[str(stage)] = lambda batch, c=classifier, x=inputs: c.logits(x[np.arange(batch) % len(x)])  # type: ignore[misc]
        for number, (model, run) in enumerate(runs.items()):
            for place, batch in enumerate(batches):
                times = []
                for _ in range(self._warmups + max(4, 24 // batch)):
                    start = time.perf_counter()
                    run(batch)
                    times.append((time.perf_counter() - start) * 1000)
                timing = _timing(times[: self._warmups], times[self._warmups :])
                yield ModelTiming(model=model, batch=batch, batch_ms=timing, images_per_s=1000 * batch / timing.p50_ms)
                self._on_step("models", number * len(batches) + place + 1, len(runs) * len(batches))

    def _photograph(self, i: int) -> Photograph:
        return Photograph(self._photographs[i], self._images)


def _steps(answers: Sequence[Prediction], warmups: int) -> Iterator[tuple[str, Timing]]:
    """Of the photographs that came to each step; without those to which none did after the warm-ups."""
    for step in STEPS:
        warm, measured = (
            [answer.latency_ms[step] for answer in part if step in answer.latency_ms]
            for part in (answers[:warmups], answers[warmups:])
        )
        if measured:
            yield step, _timing(warm, measured)


def _timing(warm: Sequence[float], measured: Sequence[float]) -> Timing:
    p50, p90, p99 = (float(value) for value in np.percentile(measured, [50, 90, 99]))
    first = warm[0] if warm else measured[0]
    return Timing(first_ms=first, p50_ms=p50, p90_ms=p90, p99_ms=p99, n=len(measured), warmups=len(warm))


def _cost(steps: Mapping[str, Timing], share: float) -> float:
    """Medians added up. Source: the cost model decode + locate + FG + r · FULL, which held within 10 % end to end."""
    full = sum(timing.p50_ms for name, timing in steps.items() if name.endswith(" FULL"))
    rest = sum(timing.p50_ms for name, timing in steps.items() if not name.endswith(" FULL"))
    return rest + share * full


def _gate(answers: Sequence[Prediction], steps: Mapping[str, Timing], own: float) -> Iterator[GatePoint]:
    """What each threshold would have done to these photographs, of which FG's confidence is known where it ran."""
    sure = np.array([answer.stage_confidence.get(Stage.FG, -1.0) for answer in answers])
    for threshold in sorted({*GATES, own}):
        share = float((sure <= threshold).mean())
        yield GatePoint(threshold=threshold, escalated=share, expected_ms=_cost(steps, share))


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _first_found(photographs: Sequence[bytes], answers: Sequence[Prediction]) -> bytes:
    return next(
        (data for data, answer in zip(photographs, answers, strict=True) if answer.region is not None), photographs[0]
    )
