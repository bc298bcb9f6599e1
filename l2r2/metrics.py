"""How good answers are, and how sure one can be of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from l2r2.errors import InputError
from l2r2.logspace import LogProbs

Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % percentile bootstrap interval over groups, and how many photographs and groups it is of."""

    value: float
    low: float
    high: float
    n: int
    groups: int


def macro_accuracy(correct: Bool[np.ndarray, " n"], labels: Labels) -> float:
    """Mean of the classes' accuracies; classes absent from `labels` are dropped. Source: the paper, appendix C.1."""
    return float(np.mean([correct[labels == k].mean() for k in np.unique(labels)]))


def nll(log_probs: LogProbs, labels: Labels) -> float:
    """Mean negative log-likelihood in nats."""
    return float(-log_probs[np.arange(len(labels)), labels].mean())


def brier(log_probs: LogProbs, labels: Labels) -> float:
    """Mean squared distance to the one-hot label, [0, 2]."""
    errors = np.exp(log_probs)
    errors[np.arange(len(labels)), labels] -= 1.0
    return float((errors**2).sum(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Reliability:
    """Equal-width confidence bins; empty bins have count 0 and zeros."""

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]

    @property
    def ece(self) -> float:
        """Expected calibration error, [0, 1]. Source: Naeini et al. 2015."""
        return float((np.abs(self.confidence - self.accuracy) * self.count).sum() / max(self.count.sum(), 1))


def reliability(log_probs: LogProbs, labels: Labels, bins: int = 15) -> Reliability:
    """Confidence against accuracy in `bins` bins."""
    sure = np.exp(log_probs.max(axis=1))
    correct = log_probs.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    full = np.maximum(count, 1)
    return Reliability(
        confidence=np.bincount(place, weights=sure, minlength=bins) / full,
        accuracy=np.bincount(place, weights=correct, minlength=bins) / full,
        count=count,
    )


def ece(log_probs: LogProbs, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error, [0, 1]."""
    return reliability(log_probs, labels, bins).ece


def bootstrap(
    values: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    groups: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean and interval when whole groups are drawn with replacement.

    Photographs of one group (one cut-out, one observation) are not independent; drawing them singly would make the
    interval too narrow. For a paired difference pass the differences.

    Raises:
        InputError: no values.
    """
    if len(values) == 0:
        raise InputError("no values to take a mean of; the split is empty")
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, weights=values)
    sizes = np.bincount(place)
    m = len(sizes)
    times = np.random.default_rng(seed).multinomial(m, np.full(m, 1.0 / m), size=draws)
    low, high = np.percentile((times @ sums) / (times @ sizes), [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high), len(values), m)


def clustered_se(values: Float[np.ndarray, " n"], groups: np.ndarray) -> float:
    """Standard error of the mean of `values` when groups, not photographs, are independent.

    Source: Liang & Zeger 1986 (the sandwich estimator for a mean), with the m / (m - 1) correction for m groups.
    """
    _, place = np.unique(groups, return_inverse=True)
    residuals = np.bincount(place, weights=values - values.mean())
    m = len(residuals)
    if m < 2:
        return float("inf")
    return float(np.sqrt(m / (m - 1) * (residuals**2).sum()) / len(values))
