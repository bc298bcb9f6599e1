"""The way of a photograph, whole: locate, render, classify, calibrate, join, explain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from l2r2.cascade import Policy
from l2r2.config import ViewSettings
from l2r2.errors import InputError
from l2r2.fusion import Evidence
from l2r2.images import Photograph
from l2r2.logspace import LogProbs, choose_rows
from l2r2.priors import Priors
from l2r2.types import (
    MAX_MEMBERS,
    Budget,
    Candidate,
    Caution,
    Classifier,
    Explanation,
    InstanceLocalizer,
    Localizer,
    Logits,
    Metadata,
    Pixels,
    Prediction,
    PredictionSet,
    Region,
    Stage,
    View,
)
from l2r2.views import OVERSAMPLE, normalize, render, wanted_scale

AnyPixels = UInt8[np.ndarray, "_h _w 3"]
"""As `Pixels`, each of a size of its own."""

FULL_SURE = 0.9
"""FULL's confidence from which an unsure FG earns a caution. Source: the paper's figure 10; the number is ours."""


@dataclass(frozen=True, slots=True)
class Recognizer:
    """FG first, FULL only for the photographs that FG was not sure of.

    Immutable and free of state between calls; threads may share it when its sessions allow that.

    Attributes:
        class_names: In the order of the logits' columns; at least two.
        localizer: Finds the foreground.
        classifiers: One a stage.
        views: What each stage's classifier looks at.
        view_settings: How views are made.
        policy: Calibration, fusion and gate.
        priors: What metadata say.
    """

    class_names: tuple[str, ...]
    localizer: Localizer
    classifiers: Mapping[Stage, Classifier]
    views: Mapping[Stage, View]
    view_settings: ViewSettings
    policy: Policy
    priors: Priors

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise InputError(f"{len(self.class_names)} class; expected at least two to tell apart")

    def recognize(
        self,
        photos: Sequence[AnyPixels | Photograph],
        metadata: Sequence[Metadata] | None = None,
        regions: Sequence[Region | None] | None = None,
        top_k: int = 5,
        *,
        fg_only: bool = False,
        budget: Budget | None = None,
    ) -> list[Prediction]:
        """Answer a batch; equal to answering its photographs one by one.

        Args:
            photos: Upright RGB, or encoded ones, which are then decoded no finer than the views need.
            metadata: One a photograph; None: nothing is known of any.
            regions: Found before, one a photograph (None: nothing was found); the localizer then does not run.
            top_k: Candidates an answer, at least 1.
            fg_only: FULL runs only where nothing was found; where it was wanted, the answer is marked degraded.
            budget: What is left for the whole batch. Where it no longer affords FULL, as `fg_only`.
        Raises:
            InputError: the sequences differ in length, or top_k is not positive.
            DeadlinePassed: by the budget, before a step that would cost.
        """
        n = len(photos)
        metadata = [{}] * n if metadata is None else metadata
        if len(metadata) != n or (regions is not None and len(regions) != n):
            raise InputError(f"{n} photographs but {len(metadata)} metadata or other regions; expected as many of each")
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; expected at least 1")
        if n == 0:
            return []
        clock = _Clock()
        budget = budget or _Endless()
        budget.require()
        if regions is None:
            regions = self._locate(photos, budget, clock)
        found = np.array([region is not None for region in regions])
        log_prior = self.priors.log_prior(metadata)

        budget.require()
        fg_logits = self._classify(Stage.FG, found, photos, regions, clock)
        fg = self.policy.evidence(Stage.FG, fg_logits, log_prior)
        alone = found & self.policy.sure(fg)
        degraded = found & ~alone
        if degraded.any() and not fg_only and budget.affords(Stage.FULL):
            degraded = np.zeros_like(alone)
        alone |= degraded
        budget.require()
        full_logits = self._classify(Stage.FULL, ~alone, photos, regions, clock)

        with clock.measure("fuse", n):
            full = fg if alone.all() else self.policy.evidence(Stage.FULL, full_logits, log_prior)
            belief = self._believe(fg, full, found, alone, log_prior)
            unswayed = self._unswayed(fg_logits, full_logits, found, alone, log_prior, belief)
            withheld = self.policy.withheld(fg_logits, full_logits, found, belief.argmax(axis=1))
            members = None if self.policy.sets is None else self.policy.sets.members(belief)
            predictions = [
                self._prediction(
                    photo=photos[i],
                    region=regions[i],
                    metadata=metadata[i],
                    logits={Stage.FG: fg_logits[i]} if alone[i] else _ran(found[i], fg_logits[i], full_logits[i]),
                    beliefs={Stage.FG: fg.belief[i], Stage.FULL: full.belief[i]},
                    belief=belief[i],
                    unswayed=int(unswayed[i]),
                    withheld=bool(withheld[i]),
                    degraded=bool(degraded[i]),
                    members=None if members is None else np.flatnonzero(members[i]),
                    top_k=top_k,
                )
                for i in range(n)
            ]
        return [replace(prediction, latency_ms=clock.share(prediction.stages)) for prediction in predictions]

    def detect(
        self, photo: AnyPixels | Photograph, most: int = 1, min_score: float | None = None, *, masks: bool = False
    ) -> list[Region | None]:
        """Where the foregrounds of one photograph are, for `recognize` to be given.

        Args:
            most: 1: one region, of whatever the localizer makes of all that it found; more: each instance is its own.
            min_score: In place of the localizer's threshold, [0, 1].
            masks: Whether regions carry their mask, where the localizer makes one.
        Returns:
            At least one; [None] where nothing was found.
        Raises:
            InputError: `most` is not positive, or the localizer does not tell instances apart.
        """
        if most < 1:
            raise InputError(f"{most} detections; expected at least 1")
        if not isinstance(self.localizer, InstanceLocalizer):
            raise InputError(f"localizer {self.localizer.key} does not tell instances apart; ask for one detection")
        (frame,) = _frames([photo], lambda _: locating_scale(self.localizer, photo), "decode", _Clock())
        (instances,) = self.localizer.instances([frame], min_score, masks=masks)
        groups = [instances] if most == 1 else [[instance] for instance in instances[:most]]
        found = [self.localizer.decide(frame, group) for group in groups]
        before, after = (frame.shape[1], frame.shape[0]), size_of(photo)
        return [region.resized(before, after) for region in found if region is not None] or [None]

    def _locate(self, photos: Sequence[AnyPixels | Photograph], budget: Budget, clock: _Clock) -> list[Region | None]:
        """Regions in pixels of the originals."""
        n = len(photos)
        frames = _frames(photos, lambda i: locating_scale(self.localizer, photos[i]), "decode", clock)
        budget.require()
        with clock.measure("locate", n):
            found = self.localizer.locate(frames)
        return [
            None if region is None else region.resized((frame.shape[1], frame.shape[0]), size_of(photo))
            for region, frame, photo in zip(found, frames, photos, strict=True)
        ]

    def _classify(
        self,
        stage: Stage,
        where: Bool[np.ndarray, " n"],
        photos: Sequence[AnyPixels | Photograph],
        regions: Sequence[Region | None],
        clock: _Clock,
    ) -> Logits:
        """Logits of the photographs in `where`; zeros elsewhere, which nothing reads."""
        logits = np.zeros((len(photos), len(self.class_names)), np.float32)
        chosen = np.flatnonzero(where).tolist()
        if chosen:
            view, settings = self.views[stage], self.view_settings

            def scale_of(i: int) -> float:
                return wanted_scale(size_of(photos[chosen[i]]), regions[chosen[i]], view, settings)

            frames = _frames([photos[i] for i in chosen], scale_of, f"decode {stage}", clock)
            with clock.measure(f"render {stage}", len(chosen)):
                squares = [
                    render(frame, _in_frame(regions[i], photos[i], frame), view, settings)
                    for i, frame in zip(chosen, frames, strict=True)
                ]
                images = normalize(squares, settings)
            with clock.measure(f"classify {stage}", len(chosen)):
                logits[chosen] = self.classifiers[stage].logits(images)
        return logits

    def _believe(
        self,
        fg: Evidence,
        full: Evidence,
        found: Bool[np.ndarray, " n"],
        alone: Bool[np.ndarray, " n"],
        log_prior: Float[np.ndarray, "n k"],
    ) -> LogProbs:
        if alone.all():
            return fg.belief
        return choose_rows(alone, fg.belief, self.policy.join(fg, full, found, log_prior))

    def _unswayed(
        self,
        fg_logits: Logits,
        full_logits: Logits,
        found: Bool[np.ndarray, " n"],
        alone: Bool[np.ndarray, " n"],
        log_prior: Float[np.ndarray, "n k"],
        belief: LogProbs,
    ) -> Int[np.ndarray, " n"]:
        """What the same stages would answer without metadata."""
        if not log_prior.any():
            return belief.argmax(axis=1)
        if alone.all():
            return self.policy.temperatures[Stage.FG].soften(fg_logits).argmax(axis=1)
        nothing = np.zeros_like(log_prior)
        fg = self.policy.evidence(Stage.FG, fg_logits, nothing)
        full = self.policy.evidence(Stage.FULL, full_logits, nothing)
        return self._believe(fg, full, found, alone, nothing).argmax(axis=1)

    def _prediction(
        self,
        photo: Pixels | Photograph,
        region: Region | None,
        metadata: Metadata,
        logits: Mapping[Stage, Float[np.ndarray, " k"]],
        beliefs: Mapping[Stage, Float[np.ndarray, " k"]],
        belief: Float[np.ndarray, " k"],
        unswayed: int,
        withheld: bool,
        degraded: bool,
        members: Int[np.ndarray, " m"] | None,
        top_k: int,
    ) -> Prediction:
        best = _largest(belief, max(top_k, 2))
        alone = {stage: self._candidates(_largest(beliefs[stage], top_k), beliefs[stage]) for stage in logits}
        sure_of = {stage: candidates[0].probability for stage, candidates in alone.items()}
        cautions = [Caution.HAZARD] if withheld else []
        if region is None:
            cautions.append(Caution.NOTHING_FOUND)
        elif Stage.FULL in logits and sure_of[Stage.FULL] > max(FULL_SURE, self.policy.threshold):
            cautions.append(Caution.FG_UNSURE_FULL_SURE)
        if unswayed != best[0]:
            cautions.append(Caution.FLIPPED_BY_PRIOR)
        return Prediction(
            candidates=self._candidates(best[:top_k], belief),
            region=region,
            size_px=size_of(photo),
            stages=tuple(logits),
            stage_confidence=sure_of,
            explanation=self._explain(int(best[0]), int(best[1]), metadata, logits, belief),
            cautions=tuple(cautions),
            unrecognized=self.priors.unrecognized(metadata),
            prediction_set=None if members is None else self._set(members, belief),
            withheld=withheld,
            degraded=degraded,
            stage_candidates=alone,
        )

    def _set(self, members: Int[np.ndarray, " m"], belief: Float[np.ndarray, " k"]) -> PredictionSet:
        assert self.policy.sets is not None
        listed = _descending(members, belief)[:MAX_MEMBERS]
        return PredictionSet(self._candidates(listed, belief), len(members), self.policy.sets.coverage)

    def _candidates(self, classes: Int[np.ndarray, " m"], belief: Float[np.ndarray, " k"]) -> tuple[Candidate, ...]:
        return tuple(Candidate(int(k), self.class_names[k], float(np.exp(belief[k]))) for k in classes)

    def _explain(
        self,
        answer: int,
        rival: int,
        metadata: Metadata,
        logits: Mapping[Stage, Float[np.ndarray, " k"]],
        belief: Float[np.ndarray, " k"],
    ) -> Explanation:
        """FG: what it alone says. A source: what it added. FULL: what bringing it in changed, which is the rest."""
        total = float(belief[answer] - belief[rival])
        known = self.priors.parts(metadata, np.array([answer, rival]))
        sources = {
            source: float(known[source][0] - known[source][1]) if source in known else 0.0
            for source in metadata
            if source in self.priors.tables
        }
        image = total - sum(sources.values())
        if Stage.FULL not in logits:
            fg = image
        elif Stage.FG in logits:
            softened = self.policy.temperatures[Stage.FG].soften(logits[Stage.FG][None])[0]
            fg = float(softened[answer] - softened[rival])
        else:
            fg = 0.0
        parts = {str(Stage.FG): fg, str(Stage.FULL): image - fg, **sources}
        return Explanation(self.class_names[rival], total, parts)


def size_of(photo: Pixels | Photograph) -> tuple[int, int]:
    """Width and height of the original."""
    return photo.size_px if isinstance(photo, Photograph) else (photo.shape[1], photo.shape[0])


def _frames(
    photos: Sequence[AnyPixels | Photograph], scale_of: Callable[[int], float], name: str, clock: _Clock
) -> list[AnyPixels]:
    """Pixels of each at its scale, asked for within the time, as it may decode; what is pixels counts for nothing."""
    if not any(isinstance(photo, Photograph) for photo in photos):
        return [photo for photo in photos if not isinstance(photo, Photograph)]
    with clock.measure(name, len(photos)):
        return [photo.at(scale_of(i)) if isinstance(photo, Photograph) else photo for i, photo in enumerate(photos)]


def locating_scale(localizer: Localizer, photo: Pixels | Photograph) -> float:
    """A localizer that does not say how many pixels it looks at gets all."""
    side = getattr(localizer, "side_px", None)
    return 1.0 if side is None else min(1.0, OVERSAMPLE * side / min(size_of(photo)))


def _in_frame(region: Region | None, photo: Pixels | Photograph, frame: Pixels) -> Region | None:
    return None if region is None else region.resized(size_of(photo), (frame.shape[1], frame.shape[0]))


def _ran(
    found: np.bool, fg_logits: Float[np.ndarray, " k"], full_logits: Float[np.ndarray, " k"]
) -> dict[Stage, Float[np.ndarray, " k"]]:
    return {Stage.FG: fg_logits, Stage.FULL: full_logits} if found else {Stage.FULL: full_logits}


FEW = 16
"""Up to so many, one search for the maximum after the other beats a partition."""


def _largest(values: Float[np.ndarray, " k"], count: int) -> Int[np.ndarray, " count"]:
    """Indices of the largest values, descending; of equals the lower index first."""
    count = min(count, len(values))
    if count > FEW or np.isneginf(values).any():
        least = np.partition(values, -count)[-count]
        return _descending(np.flatnonzero(values >= least), values)[:count]
    left, found = values.copy(), np.empty(count, np.int64)
    for place in range(count):
        found[place] = left.argmax()
        left[found[place]] = -np.inf
    return found


def _descending(classes: Int[np.ndarray, " m"], values: Float[np.ndarray, " k"]) -> Int[np.ndarray, " m"]:
    return classes[np.argsort(-values[classes], kind="stable")]


class _Endless:
    """Nobody is in a hurry. Fulfils `Budget`."""

    def require(self) -> None:
        """Never raise."""

    def affords(self, stage: Stage) -> bool:  # noqa: ARG002
        """Always."""
        return True


class _Clock:
    """Wall time a stage, shared among the photographs that it ran for."""

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str, photos: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._ms[name] = (time.perf_counter() - start) * 1000 / photos

    def share(self, stages: tuple[Stage, ...]) -> dict[str, float]:
        """What one photograph cost, given the classifiers that ran for it."""
        skipped = {stage for stage in Stage if stage not in stages}
        own = {name: ms for name, ms in self._ms.items() if not any(name.endswith(f" {stage}") for stage in skipped)}
        decoding = [own.pop(name) for name in list(own) if name.startswith("decode")]  # in several scales, one step
        return {"decode": sum(decoding), **own} if decoding else own
