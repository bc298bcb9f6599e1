"""A gate with a guarantee: how often the cascade may be wrong where always running both would have been right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from l2r2.errors import InputError


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is certain of the chosen threshold.

    Attributes:
        threshold: The lowest that could be certified; 1 (always run both: no loss by definition) if none could.
        loss: Mean over the groups, on the photographs that certified it, [0, 1].
        bound: Upper confidence bound of the expected loss at level 1 - delta, [0, 1]; at most epsilon.
        groups: How many there were.
    """

    threshold: float
    loss: float
    bound: float
    groups: int


def certify(
    thresholds: Float[np.ndarray, " t"],
    losses: Bool[np.ndarray, "t n"],
    groups: np.ndarray,
    epsilon: float,
    delta: float,
) -> Certificate:
    """The lowest threshold of which P(expected loss > epsilon) ≤ delta, over the draw of the groups.

    Thresholds are tested from the highest down, each at level delta, until one fails: as the order is fixed beforehand
    no correction for their number is needed. Only groups are independent of each other, so a group's loss is the mean
    of its photographs', and the expected loss that of a new group.

    Args:
        thresholds: Ascending, the last one 1.
        losses: Row t: where the cascade with threshold t is wrong and always running both is right. An upper bound of
            the loss of accuracy; it can only grow as the threshold falls.
        epsilon, delta: (0, 1).
    Raises:
        InputError: no photographs, thresholds that do not ascend, or epsilon or delta outside their range.
    Source: Angelopoulos, Bates, Candès, Jordan & Lei 2021, arXiv:2110.01052 (Learn then Test, fixed sequence testing).
    """
    if losses.shape[1] == 0 or len(thresholds) != len(losses) or (np.diff(thresholds) <= 0).any():
        raise InputError(
            f"{len(thresholds)} thresholds, losses {losses.shape}; expected ascending ones and photographs"
        )
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise InputError(f"epsilon is {epsilon}, delta {delta}; expected numbers between 0 and 1")
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen, best = 1.0, np.zeros(len(sizes))
    for threshold, row in zip(thresholds[::-1], losses[::-1], strict=True):
        means = np.bincount(place, weights=row) / sizes
        if p_value(means, epsilon) > delta:
            break
        chosen, best = float(threshold), means
    return Certificate(chosen, float(best.mean()), upper_bound(best, delta), len(sizes))


def p_value(losses: Float[np.ndarray, " m"], epsilon: float) -> float:
    """Of the hypothesis E[loss] > epsilon, from m independent losses in [0, 1]; valid for every m.

    Losses of 0 and 1 have the exact binomial tail, P(Bin(m, ε) ≤ their number). Others have the smaller of two:
    Hoeffding's bound exp(-m KL(mean ‖ ε)) and Bentkus' e P(Bin(m, ε) ≤ ⌈m mean⌉).

    Source: Bates, Angelopoulos, Lei, Malik & Jordan 2021, arXiv:2101.02703, section 3.1 (the Hoeffding-Bentkus bound).
    """
    from scipy.stats import binom

    m, mean = len(losses), float(losses.mean())
    if np.isin(losses, (0.0, 1.0)).all():
        return float(binom.cdf(round(m * mean), m, epsilon))
    if mean >= epsilon:
        return 1.0
    divergence = (1 - mean) * np.log((1 - mean) / (1 - epsilon)) + (mean * np.log(mean / epsilon) if mean > 0 else 0.0)
    return float(min(np.exp(-m * divergence), np.e * binom.cdf(np.ceil(m * mean - 1e-9), m, epsilon), 1.0))


def upper_bound(losses: Float[np.ndarray, " m"], delta: float) -> float:
    """The largest expected loss that the losses do not refute at level delta, [0, 1], to 1e-6."""
    low, high = float(losses.mean()), 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(losses, middle) > delta else (low, middle)
    return high
