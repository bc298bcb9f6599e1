"""Does the exported model answer as the one it came from? Figures first, then a gate with stated tolerances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float32

from l2r2.errors import BackendError, InputError, ParityError
from l2r2.localization import SaliencyLocalizer
from l2r2.logspace import log_normalize
from l2r2.recognizer import Recognizer
from l2r2.types import Classifier, Logits, Metadata, Photos, Region, Stage

LOGIT_TOLERANCE = 1e-3
"""Largest absolute difference of a logit. A change of d in every logit moves no probability by more than d / 2, so this
is 0.05 points; float32 on two runtimes differs by about 1e-5, a wrong operator by far more."""

SALIENCY_TOLERANCE = 1e-3
"""Largest absolute difference of a saliency, [0, 1]; both run on one runtime and differ by about 1e-6 at most."""

MIN_IOU = 0.99
"""Of two boxes of one photograph. One pixel of the saliency map more or less on one side is 0.99 for a box of 100."""

AGREEMENT = 1.0
"""Share of equal decisions (found or not, top class, answer, stages run): what is served must be what was fitted."""

BATCH = 8
"""Photographs at once where a batch is compared with one by one."""

LOCALIZER_BATCH = 3
"""As `BATCH`, for the localizer, which costs 30 times as much."""


@dataclass(frozen=True, slots=True)
class ClassifierParity:
    """Exported against reference logits.

    Attributes:
        max_abs, mean_abs, q99_abs: Of the absolute logit difference; q99 is its 0.99 quantile.
        kl: Largest KL(reference ‖ exported) of a photograph, in nats.
        top1_agreement: Share of photographs with the same top class, [0, 1].
        batch_max_abs: Largest absolute logit difference of the exported model between a batch and one by one.
        n: Photographs.
    """

    max_abs: float
    mean_abs: float
    q99_abs: float
    kl: float
    top1_agreement: float
    batch_max_abs: float
    n: float


@dataclass(frozen=True, slots=True)
class LocalizerParity:
    """Exported against reference saliency and regions.

    Attributes:
        max_abs: Of the absolute saliency difference.
        min_iou: Of the two boxes where both found one; 1 where there is no such photograph.
        found_agreement: Share of photographs where both or neither found something, [0, 1].
        batch_max_abs: Largest absolute saliency difference of the exported model between a batch and one by one.
        n: Photographs.
    """

    max_abs: float
    min_iou: float
    found_agreement: float
    batch_max_abs: float
    n: float


@dataclass(frozen=True, slots=True)
class DecisionParity:
    """The cascade with exported models against the cascade with those they came from.

    Attributes:
        answer_agreement, stage_agreement: Shares of photographs with the same answer and the same stages run, [0, 1].
        max_abs_probability: Largest absolute difference of the answer's probability where the answers are equal.
        skipped_full: Share that FG answered alone, [0, 1]; at 0 or 1 only one branch was tried.
        n: Photographs.
    """

    answer_agreement: float
    stage_agreement: float
    max_abs_probability: float
    skipped_full: float
    n: float


def check_classifier(
    reference: Classifier,
    exported: Classifier,
    images: Float32[np.ndarray, "n 3 size size"],
    tolerance: float = LOGIT_TOLERANCE,
    what: str = "classifier",
) -> dict[str, float]:
    """Compare logits; the fields of `ClassifierParity`.

    Args:
        images: Rendered and normalised views, n ≥ 1.
        tolerance: Largest absolute logit difference accepted, between models and between batch and one by one.
        what: Names the model in messages.
    Raises:
        ParityError: outside the tolerance, another top class, or the exported model failed.
        InputError: no images.
    """
    n = count(len(images), what)
    wanted = np.concatenate([reference.logits(images[i : i + BATCH]) for i in range(0, n, BATCH)])
    try:
        got = np.concatenate([exported.logits(images[i : i + BATCH]) for i in range(0, n, BATCH)])
        single = np.concatenate([exported.logits(images[i : i + 1]) for i in range(n)])
    except BackendError as error:
        raise ParityError(f"{what}: the exported model failed on {n} photographs: {error}") from error
    if got.shape != wanted.shape:
        raise ParityError(f"{what}: the exported model gave logits {got.shape}; expected {wanted.shape}, export again")
    figures = asdict(compare_logits(wanted, got, single))
    gate(what, figures, {"max_abs": tolerance, "batch_max_abs": tolerance}, {"top1_agreement": AGREEMENT})
    return figures


def compare_logits(reference: Logits, exported: Logits, exported_single: Logits) -> ClassifierParity:
    """Figures of n ≥ 1 rows; `exported_single` was computed one by one. Not finite in, not finite out."""
    difference = np.abs(exported.astype(np.float64) - reference)
    p, q = log_normalize(reference.astype(np.float64)), log_normalize(exported.astype(np.float64))
    return ClassifierParity(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        q99_abs=float(np.quantile(difference, 0.99)),
        kl=float((np.exp(p) * (p - q)).sum(axis=1).max()),
        top1_agreement=float((reference.argmax(axis=1) == exported.argmax(axis=1)).mean()),
        batch_max_abs=float(np.abs(exported.astype(np.float64) - exported_single).max()),
        n=float(len(reference)),
    )


def check_localizer(reference: SaliencyLocalizer, exported: SaliencyLocalizer, photos: Photos) -> dict[str, float]:
    """Compare saliency and regions; the fields of `LocalizerParity`.

    Args:
        reference: Asked for one photograph at a time, since its file may take no more.
        photos: n ≥ 1, read in order, more than once; they need not fit in memory together.
    Raises:
        ParityError: outside the tolerances, or the exported model failed.
        InputError: no photographs.
    """
    n = count(len(photos), "localizer")
    worst, ious, agree = [], [1.0], []
    singles = []
    try:
        for photo in photos:
            wanted, got = reference.saliency([photo])[0], exported.saliency([photo])[0]
            worst.append(float(np.abs(got - wanted).max()) if got.shape == wanted.shape else np.inf)
            singles.append(got)
            before, after = reference.locate([photo])[0], exported.locate([photo])[0]
            agree.append((before is None) == (after is None))
            if before is not None and after is not None:
                ious.append(box_iou(before, after))
        few = min(n, LOCALIZER_BATCH)
        together = exported.saliency([photos[i] for i in range(few)])
    except BackendError as error:
        raise ParityError(f"localizer: the exported model failed: {error}; rewrite it again") from error
    parity = LocalizerParity(
        max_abs=float(np.max(worst)),
        min_iou=min(ious),
        found_agreement=float(np.mean(agree)),
        batch_max_abs=float(np.abs(together - np.stack(singles[:few])).max()),
        n=float(n),
    )
    figures = asdict(parity)
    at_most = {"max_abs": SALIENCY_TOLERANCE, "batch_max_abs": SALIENCY_TOLERANCE}
    gate("localizer", figures, at_most, {"min_iou": MIN_IOU, "found_agreement": AGREEMENT})
    return figures


def check_decisions(
    reference: Recognizer, exported: Recognizer, photos: Photos, metadata: Sequence[Metadata]
) -> dict[str, float]:
    """Compare whole cascades, one photograph at a time; the fields of `DecisionParity`.

    Args:
        photos: n ≥ 1, read in order; they need not fit in memory together.
        metadata: One a photograph.
    Raises:
        ParityError: an answer, or the stages that ran for it, differ.
        InputError: no photographs, or another number of metadata.
    """
    n = count(len(photos), "decisions")
    answers, stages, apart, skipped = [], [], [0.0], []
    for photo, known in zip(photos, metadata, strict=True):
        before, after = (each.recognize([photo], [known])[0] for each in (reference, exported))
        answers.append(before.answer.index == after.answer.index)
        stages.append(before.stages == after.stages)
        skipped.append(Stage.FULL not in after.stages)
        if answers[-1]:
            apart.append(abs(before.answer.probability - after.answer.probability))
    parity = DecisionParity(
        answer_agreement=float(np.mean(answers)),
        stage_agreement=float(np.mean(stages)),
        max_abs_probability=max(apart),
        skipped_full=float(np.mean(skipped)),
        n=float(n),
    )
    figures = asdict(parity)
    gate("decisions", figures, {}, {"answer_agreement": AGREEMENT, "stage_agreement": AGREEMENT})
    return figures


def box_iou(first: Region, second: Region) -> float:
    """Intersection over union of two boxes, [0, 1]."""
    a, b = np.asarray(first.box_xyxy_px), np.asarray(second.box_xyxy_px)
    both = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0.0))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))


def count(n: int, what: str) -> int:
    """How many photographs there are to compare on.

    Raises:
        InputError: none.
    """
    if n == 0:
        raise InputError(f"{what}: no photographs to compare on; expected at least one, give a validation split")
    return n


def gate(what: str, figures: Mapping[str, float], at_most: Mapping[str, float], at_least: Mapping[str, float]) -> None:
    """Refuse figures outside their limits; one that is not a number is outside.

    Raises:
        ParityError: with all figures.
    """
    broken = [
        f"{name} {figures[name]:.3g}, at most {limit:g}"
        for name, limit in at_most.items()
        if not figures[name] <= limit
    ]
    broken += [
        f"{name} {figures[name]:.3g}, at least {limit:g}"
        for name, limit in at_least.items()
        if not figures[name] >= limit
    ]
    if broken:
        seen = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        raise ParityError(
            f"{what}: the exported model answers differently; expected {'; '.join(broken)} (all figures: {seen}). "
            "Nothing was written; export again, and if it stays so, choose another model"
        )
