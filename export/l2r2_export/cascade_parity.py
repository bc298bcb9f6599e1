"""A deployment's whole cascade against the reference's, on the same photographs from file to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np

from l2r2.errors import BackendError, InputError, ParityError
from l2r2.images import Photograph
from l2r2.manifest import Precision
from l2r2.metrics import Labels, bootstrap
from l2r2.recognizer import Recognizer
from l2r2.types import Metadata, Region, Stage
from l2r2_export.precision_parity import Figures, outside


@dataclass(frozen=True, slots=True)
class CascadeParity:
    """The cascade of a deployment against that of the reference.

    Attributes:
        answer_agreement, stage_agreement: Shares of photographs with the same answer, and with the same stages run (FG
            sure, FG unsure, nothing found), [0, 1].
        mean_abs_probability, max_abs_probability: Of the answer's probability where the answers are equal.
        skipped_full: Share that FG answered alone, [0, 1].
        accuracy: Of the deployment, [0, 1].
        accuracy_change: Deployment less reference, [-1, 1]; negative is a loss.
        accuracy_change_low, accuracy_change_high: Its 95 % paired bootstrap interval, whole groups drawn.
        n, groups: Photographs, and groups that they are of.
    """

    answer_agreement: float
    stage_agreement: float
    mean_abs_probability: float
    max_abs_probability: float
    skipped_full: float
    accuracy: float
    accuracy_change: float
    accuracy_change_low: float
    accuracy_change_high: float
    n: float
    groups: float


@dataclass(frozen=True, slots=True)
class CascadeTolerance:
    """What a deployment may change. Fulfils `precision_parity.Limits`.

    Attributes:
        min_answer_agreement, min_stage_agreement: [0, 1].
        max_accuracy_loss: A share; of the point estimate, as in `precision_parity.Tolerance`.
    """

    min_answer_agreement: float
    min_stage_agreement: float
    max_accuracy_loss: float

    def broken(self, figures: Mapping[str, float]) -> list[str]:
        """What is outside, in words."""
        return outside(
            figures,
            at_most={},
            at_least={
                "answer_agreement": self.min_answer_agreement,
                "stage_agreement": self.min_stage_agreement,
                "accuracy_change": -self.max_accuracy_loss,
            },
        )


CASCADE_TOLERANCES: Mapping[Precision, CascadeTolerance] = MappingProxyType(
    {
        "fp32": CascadeTolerance(min_answer_agreement=0.99, min_stage_agreement=0.99, max_accuracy_loss=0.005),
        "fp16": CascadeTolerance(min_answer_agreement=0.99, min_stage_agreement=0.98, max_accuracy_loss=0.005),
        "bf16": CascadeTolerance(min_answer_agreement=0.97, min_stage_agreement=0.97, max_accuracy_loss=0.005),
        "int8": CascadeTolerance(min_answer_agreement=0.97, min_stage_agreement=0.95, max_accuracy_loss=0.005),
    }
)
"""Of 240 photographs FP32 may change two: a box that moves by a pixel of the saliency map can tip an answer. Stages tip
more easily than answers: a threshold is crossed by less than a class boundary is."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was answered for one photograph."""

    answer: int
    probability: float
    stages: tuple[Stage, ...]
    region: Region | None = None


def decide_all(
    recognizer: Recognizer,
    photographs: Sequence[Callable[[], Photograph]],
    metadata: Sequence[Metadata],
    on_photo: Callable[[int], None] = lambda _done: None,
) -> list[Decision]:
    """One at a time, from encoded photograph to answer.

    Raises:
        ParityError: a model failed.
    """
    decisions = []
    for done, (opened, known) in enumerate(zip(photographs, metadata, strict=True), start=1):
        try:
            (found,) = recognizer.recognize([opened()], [known])
        except BackendError as error:
            raise ParityError(f"cascade: a model failed on photograph {done}: {error}") from error
        decisions.append(Decision(found.answer.index, found.answer.probability, tuple(found.stages), found.region))
        on_photo(done)
    return decisions


def compare_cascades(
    reference: Sequence[Decision], other: Sequence[Decision], labels: Labels, groups: np.ndarray
) -> Figures:
    """The fields of `CascadeParity`.

    Raises:
        InputError: no photographs, or another number of them.
    """
    n = len(reference)
    if n == 0 or not n == len(other) == len(labels) == len(groups):
        raise InputError(
            f"cascade: {n} decisions to compare with {len(other)}, {len(labels)} labels and {len(groups)} groups; "
            "expected as many of each, at least one"
        )
    pairs = list(zip(reference, other, strict=True))
    apart = [abs(a.probability - b.probability) for a, b in pairs if a.answer == b.answer] or [0.0]
    before, after = (np.array([each.answer for each in decisions]) == labels for decisions in (reference, other))
    change = bootstrap(after.astype(np.float64) - before, groups)
    return asdict(
        CascadeParity(
            answer_agreement=float(np.mean([a.answer == b.answer for a, b in pairs])),
            stage_agreement=float(np.mean([a.stages == b.stages for a, b in pairs])),
            mean_abs_probability=float(np.mean(apart)),
            max_abs_probability=float(np.max(apart)),
            skipped_full=float(np.mean([Stage.FULL not in each.stages for each in other])),
            accuracy=float(after.mean()),
            accuracy_change=change.value,
            accuracy_change_low=change.low,
            accuracy_change_high=change.high,
            n=float(n),
            groups=float(change.groups),
        )
    )
