"""Prediction sets that hold the right class as often as promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        coverage: Share of photographs whose class is to be in their set, (0, 1).
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
    """The highest threshold that covers, on photographs of new groups, at least `coverage` on average.

    Photographs of one group (an observation, a cut-out) resemble each other, so groups are what is exchangeable: each
    of the m groups has weight 1 / (m + 1), shared by its photographs, and so has the group that is to come. With groups
    of one photograph this is split conformal prediction. With m < coverage / (1 - coverage) groups nothing can be
    promised and the threshold is 0. It is exact where nothing else was fitted on the photographs.

    Raises:
        InputError: no photographs.
    Source: Lee, Barber & Willett 2023, arXiv:2306.06342, section 3 (hierarchical conformal prediction).
    """
    if len(labels) == 0:
        raise InputError("no photographs to fit prediction sets on; the validation split is empty")
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1.0 / ((len(sizes) + 1) * sizes[place])
    truth = np.exp(belief[np.arange(len(labels)), labels].astype(np.float64))
    order = np.argsort(-truth, kind="stable")
    covered = np.cumsum(weights[order])
    enough = np.flatnonzero(covered >= coverage - 1e-12)
    threshold = float(truth[order[enough[0]]]) if len(enough) else 0.0
    return PredictionSets(_below(threshold, belief.dtype), coverage)


def set_figures(
    sets: PredictionSets, belief: LogProbs, labels: Labels, groups: np.ndarray
) -> Mapping[str, float | Interval]:
    """What sets are worth: coverage (an interval by group), mean size, share of sets of one class."""
    members = sets.members(belief)
    sizes = members.sum(axis=1)
    return {
        "coverage": bootstrap(members[np.arange(len(labels)), labels], groups),
        "size": float(sizes.mean()),
        "singletons": float((sizes == 1).mean()),
    }


def _below(threshold: float, dtype: np.dtype[np.floating]) -> float:
    """A hair lower, so that rounding between logarithm and probability puts no class on its own threshold out."""
    return max(0.0, threshold * (1.0 - 8 * float(np.finfo(dtype).eps)) if threshold else 0.0)
