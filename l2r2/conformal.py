"""Prediction sets that hold the right class as often as promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from l2r2.errors import InputError
from l2r2.logspace import LogProbs
from l2r2.metrics import Interval, Labels, bootstrap


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """{k : p_k ≥ threshold}, and always the most probable class.

    Source: Sadinle, Lei & Wasserman 2019 (least ambiguous set-valued classifiers).

    Attributes:
        threshold: Probability, [0, 1]; 0 puts every class into every set.
        coverage: Share of photographs whose class is to be in their set, each group counting the same, (0, 1).
    """

    threshold: float
    coverage: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0 or not 0.0 < self.coverage < 1.0:
            raise InputError(
                f"threshold {self.threshold}, coverage {self.coverage}; expected [0, 1] and a share between 0 and 1"
            )

    def members(self, belief: LogProbs) -> Bool[np.ndarray, "n k"]:
        """Which classes are in each photograph's set."""
        with np.errstate(divide="ignore"):
            least = np.log(self.threshold)
        chosen = belief >= np.minimum(least, belief.max(axis=1, keepdims=True))
        return np.asarray(chosen)


def fit_sets(belief: LogProbs, labels: Labels, groups: np.ndarray, coverage: float) -> PredictionSets:
    """The highest threshold that covers, of a new group, a photograph drawn at random with at least `coverage`.

    Photographs of one group (an observation, a cut-out) resemble each other, so groups are what is exchangeable: each
    of the m groups has weight 1 / (m + 1), shared by its photographs, and so has the group that is to come. Hence each
    group counts the same, however many photographs it has; the promise is an average over the draws of both. With
    groups of one photograph this is split conformal prediction. With m < coverage / (1 - coverage) groups nothing can
    be promised: the threshold is 0 and every class is in every set. It is exact where nothing else was fitted on the
    photographs.

    Raises:
        InputError: no photographs, or coverage outside its range.
    Source: Lee, Barber & Willett 2023, arXiv:2306.06342 (hierarchical conformal prediction).
    """
    if len(labels) == 0:
        raise InputError("no photographs to fit prediction sets on; the validation split is empty")
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1.0 / ((len(sizes) + 1) * sizes[place])
    truth = belief[np.arange(len(labels)), labels].astype(np.float64)
    order = np.argsort(-truth, kind="stable")
    covered = np.cumsum(weights[order])
    enough = np.flatnonzero(covered >= coverage - 1e-12)
    least = float(truth[order[enough[0]]]) if len(enough) else -np.inf
    return PredictionSets(_just_below(least, belief.dtype), coverage)


def set_figures(
    sets: PredictionSets, belief: LogProbs, labels: Labels, groups: np.ndarray
) -> Mapping[str, float | Interval]:
    """What sets are worth: coverage (a mean of groups, as promised; an interval), mean size, share of single classes.

    Raises:
        InputError: no photographs.
    """
    members = sets.members(belief)
    sizes = members.sum(axis=1)
    _, place = np.unique(groups, return_inverse=True)
    covered = np.bincount(place, weights=members[np.arange(len(labels)), labels]) / np.bincount(place)
    return {
        "coverage": replace(bootstrap(covered, np.arange(len(covered))), n=len(labels)),
        "size": float(sizes.mean()),
        "singletons": float((sizes == 1).mean()),
    }


def _just_below(log_threshold: float, dtype: np.dtype[np.floating]) -> float:
    """The threshold's probability, a hair lower: rounding on the way to it and back puts no class on it out."""
    if log_threshold < np.log(np.finfo(np.float64).tiny):
        return 0.0  # subnormal: too few digits to come back with
    return float(np.exp(log_threshold) * (1.0 - 8 * float(np.finfo(dtype).eps)))
