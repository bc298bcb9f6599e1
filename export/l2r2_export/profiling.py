"""What a bundle costs on this device: stage by stage, for the whole cascade, and as a function of the gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from l2r2.bundle import Bundle
from l2r2.config import Settings
from l2r2.errors import ArtifactError, InputError
from l2r2.fusion import Threshold
from l2r2.images import Photograph
from l2r2.recognizer import Recognizer
from l2r2.types import Prediction, Stage
from l2r2.views import normalize, render
from l2r2_export.host import energy_joules, facts, peak_memory_mb

STEPS = ("decode", "locate", "render FG", "classify FG", "render FULL", "classify FULL", "fuse")
"""In the order in which a photograph comes to them."""

OnStep = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""


class Timing(Settings):
    """Milliseconds; percentiles are of n photographs (or batches) after the first, which warms up."""

    first_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int


class ModelTiming(Settings):
    """One model alone, at one batch size."""

    model: str
    batch: int
    batch_ms: Timing
    images_per_s: float


class Profile(Settings):
    """One bundle on one device."""

    schema_version: Literal[1] = 1
    bundle: str
    bundle_version: str
    runtime: str
    threads: int
    taken: str
    """UTC, ISO 8601."""
    host: dict[str, str]
    steps: dict[str, Timing]
    """With both classifiers always run; decoding in all the scales that a photograph needs."""
    always_both: Timing
    cascade: Timing
    """With the bundle's own gate."""
    photographs_per_s: float
    """One after the other, through the cascade."""
    escalated: float = Field(ge=0, le=1)
    """Share of these photographs that ran FULL; nothing found included."""
    cost_ms: dict[str, float]
    """Escalated share → expected milliseconds a photograph: decode, locate, FG and that share of FULL, by medians."""
    models: tuple[ModelTiming, ...]
    joules_per_photograph: float | None = None
    """Of the whole processor package, neighbours included; None where the platform does not tell."""
    peak_memory_mb: float


def profile_bundle(
    bundle: Bundle,
    photographs: Sequence[bytes],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batches: Sequence[int] = (1, 4, 8),
    on_step: OnStep = lambda _what, _done, _total: None,
) -> Profile:
    """Measure with encoded photographs, one at a time from bytes to answer, then each model alone.

    Args:
        photographs: At least two; the first warms up.
        batches: Sizes for the models alone.
    Raises:
        InputError: too few photographs, or a batch that is not positive.
        ConfigError, BackendMissing, ArtifactError: from the bundle.
    """
    if len(photographs) < 2:
        raise InputError(f"{len(photographs)} photographs to profile with; expected at least 2, the first warms up")
    if not batches or min(batches) < 1:
        raise InputError(f"batches are {list(batches)}; expected positive sizes")
    recognizer = bundle.recognizer(threads=threads, runtime=runtime)
    images = bundle.manifest.images
    both, times, _ = _answer_all(_always_both(recognizer), photographs, images, on_step, "always both")
    before = energy_joules()
    answers, cascade, seconds = _answer_all(recognizer, photographs, images, on_step, "cascade")
    after = energy_joules()
    steps = {
        name: _timing([answer.latency_ms[name] for answer in both if name in answer.latency_ms])
        for name in STEPS
        if sum(name in answer.latency_ms for answer in both) > 1
    }
    used = None if before is None or after is None else (after - before) / len(photographs)
    return Profile(
        bundle=bundle.manifest.name,
        bundle_version=bundle.version,
        runtime=runtime,
        threads=threads,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        host=facts(),
        steps=steps,
        always_both=_timing(times),
        cascade=_timing(cascade),
        photographs_per_s=len(photographs) / seconds,
        escalated=float(np.mean([Stage.FULL in answer.stages for answer in answers])),
        cost_ms={f"{share:.1f}": _cost(steps, share) for share in np.linspace(0, 1, 11)},
        models=tuple(_models(recognizer, photographs, both, batches, images, on_step)),
        joules_per_photograph=used,
        peak_memory_mb=peak_memory_mb(),
    )


def read_profile(path: Path) -> Profile:
    """Read what `Profile.model_dump_json` wrote, perhaps on another device.

    Raises:
        ArtifactError: missing, or no profile.
    """
    try:
        return Profile.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ArtifactError(f"{path} is no profile ({first}); expected a file of l2r2 profile --out") from None


def as_metrics(profile: Profile) -> dict[str, float]:
    """Numbers for a tracked run, so that devices and precisions lie side by side."""
    values = {f"step/{name}/p50_ms": timing.p50_ms for name, timing in profile.steps.items()}
    values |= {f"step/{name}/p99_ms": timing.p99_ms for name, timing in profile.steps.items()}
    for name, timing in (("cascade", profile.cascade), ("always_both", profile.always_both)):
        values |= {f"{name}/p50_ms": timing.p50_ms, f"{name}/p90_ms": timing.p90_ms, f"{name}/p99_ms": timing.p99_ms}
    values |= {f"model/{m.model}/batch {m.batch}/images_per_s": m.images_per_s for m in profile.models}
    values |= {"photographs_per_s": profile.photographs_per_s, "peak_memory_mb": profile.peak_memory_mb}
    values["escalated"] = profile.escalated
    if profile.joules_per_photograph is not None:
        values["joules_per_photograph"] = profile.joules_per_photograph
    return values


def _always_both(recognizer: Recognizer) -> Recognizer:
    policy = recognizer.policy
    operator = Threshold(1.0) if isinstance(policy.operator, Threshold) else policy.operator
    return replace(recognizer, policy=replace(policy, operator=operator, threshold=1.0))


def _answer_all(
    recognizer: Recognizer, photographs: Sequence[bytes], images: object, on_step: OnStep, what: str
) -> tuple[list[Prediction], list[float], float]:
    """Answers, milliseconds of each from bytes to answer, and seconds in all; the first warms up but is counted."""
    answers, times = [], []
    began = time.perf_counter()
    for number, data in enumerate(photographs, start=1):
        start = time.perf_counter()
        answers += recognizer.recognize([Photograph(data, images)])  # type: ignore[arg-type]
        times.append((time.perf_counter() - start) * 1000)
        on_step(what, number, len(photographs))
    return answers, times, time.perf_counter() - began


def _models(
    recognizer: Recognizer,
    photographs: Sequence[bytes],
    answers: Sequence[Prediction],
    batches: Sequence[int],
    images: object,
    on_step: OnStep,
) -> Iterator[ModelTiming]:
    """Each model alone on real inputs, repeated to fill a batch."""
    settings = recognizer.view_settings
    some = list(range(min(len(photographs), 8)))
    pixels = [Photograph(photographs[i], images).at(1.0) for i in some]  # type: ignore[arg-type]
    runs: dict[str, Callable[[int], object]] = {
        "localizer": lambda batch: recognizer.localizer.locate([pixels[i % len(pixels)] for i in range(batch)])
    }
    for stage in Stage:
        squares = [render(pixels[i], answers[i].region, recognizer.views[stage], settings) for i in some]
        inputs = normalize(squares, settings)
        classifier = recognizer.classifiers[stage]
        runs[str(stage)] = lambda batch, c=classifier, x=inputs: c.logits(x[np.arange(batch) % len(x)])  # type: ignore[misc]
    for number, (model, run) in enumerate(runs.items()):
        for place, batch in enumerate(batches):
            times = []
            for _ in range(max(4, 24 // batch)):
                start = time.perf_counter()
                run(batch)
                times.append((time.perf_counter() - start) * 1000)
            timing = _timing(times)
            yield ModelTiming(model=model, batch=batch, batch_ms=timing, images_per_s=1000 * batch / timing.p50_ms)
            on_step("models", number * len(batches) + place + 1, len(runs) * len(batches))


def _timing(times: Sequence[float]) -> Timing:
    first, rest = times[0], list(times[1:]) or list(times)
    p50, p90, p99 = np.percentile(rest, [50, 90, 99])
    return Timing(first_ms=first, p50_ms=float(p50), p90_ms=float(p90), p99_ms=float(p99), n=len(rest))


def _cost(steps: Mapping[str, Timing], share: float) -> float:
    """Medians added up. Source: the cost model decode + locate + FG + r · FULL, which held within 10 % end to end."""
    full = sum(timing.p50_ms for name, timing in steps.items() if name.endswith(" FULL"))
    rest = sum(timing.p50_ms for name, timing in steps.items() if not name.endswith(" FULL"))
    return rest + share * full
