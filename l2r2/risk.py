"""A gate with a guarantee: how often the cascade may be wrong where always running both would have been right."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
from jaxtyping import Bool, Float

from l2r2.errors import InputError

Losses = Float[np.ndarray, " m"] | Bool[np.ndarray, " m"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is certain of the chosen threshold: except with probability delta, its expected loss is at most epsilon.

    Attributes:
        threshold: The lowest that could be certified; 1 (always run both: no loss by definition) if none could.
        p_value: Of the hypothesis that the expected loss is above epsilon; at most delta, and 0 at threshold 1.
        loss: Mean over the groups, on the photographs that certified it, [0, 1].
        bound: Upper confidence bound of the expected loss at level 1 - delta, as for a threshold that had been fixed
            beforehand; at most epsilon, and 0 at threshold 1. As the threshold was chosen on the same groups, epsilon
            is what is guaranteed; the bound says how near to it the threshold came.
        groups: How many there were.
    """

    threshold: float
    p_value: float
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
    """The lowest threshold that surely loses at most epsilon: P(more) ≤ delta, over the draw of the groups.

    Thresholds are tested from the highest down, each at level delta, until one fails: as the order is fixed beforehand
    no correction for their number is needed. They may be the data's own confidences, since between two of these the
    losses do not change, and may be thinned out, since losses only grow downwards and the p-value with them.

    Only groups are independent of each other, so a group's loss is the mean of its photographs', and the expected loss
    that of a new group: each group counts the same. At least log(delta) / log(1 - epsilon) groups are needed (114 for
    0.02 and 0.1); with fewer, threshold 1 is all that can be certified.

    Args:
        thresholds: Ascending, [0, 1].
        losses: Row t: where the cascade with threshold t is wrong and always running both is right. An upper bound of
            the loss of accuracy; it can only grow as the threshold falls.
        epsilon, delta: (0, 1).
    Raises:
        InputError: no photographs, shapes that differ, thresholds that do not ascend, a loss at threshold 1, or
            epsilon or delta outside their range.
    Source: Angelopoulos, Bates, Candès, Jordan & Lei 2021, arXiv:2110.01052 (Learn then Test, fixed sequence testing).
    """
    n = losses.shape[1]
    if n == 0 or len(groups) != n or len(thresholds) != len(losses) or (np.diff(thresholds) <= 0).any():
        raise InputError(
            f"{len(thresholds)} thresholds, losses {losses.shape}, {len(groups)} groups; expected ascending ones and"
            " photographs, each with its group"
        )
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise InputError(f"epsilon is {epsilon}, delta {delta}; expected numbers between 0 and 1")
    if losses[thresholds >= 1].any():
        raise InputError("losses at threshold 1; expected none, it always runs both")
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen = None
    for threshold, row in zip(thresholds[::-1], losses[::-1], strict=True):
        # Where each group is one photograph, losses are zeros and ones by design.
        means = row if len(sizes) == n else np.bincount(place, weights=row) / sizes
        p = p_value(means, epsilon)
        if p > delta:
            break
        if threshold < 1:
            chosen = float(threshold), p, means
    if chosen is None:
        return Certificate(1.0, 0.0, 0.0, 0.0, len(sizes))
    lowest, p, means = chosen
    return Certificate(lowest, p, float(means.mean()), min(upper_bound(means, delta), epsilon), len(sizes))


def p_value(losses: Losses, epsilon: float) -> float:
    """Of the hypothesis E[loss] > epsilon, from m independent losses in [0, 1]; valid for every m.

    Bool losses have the exact binomial tail, P(Bin(m, ε) ≤ their number). For others bet on each loss, at a stake u in
    [0, 1], the fair odds (ε - loss) / (1 - ε): the product of 1 + u · odds has expectation at most 1 if E[loss] ≥ ε, so
    it reaches 1 / p with probability at most p (Markov). Take for each p the u that is best when losses are 0 or 1 with
    just the mean c = ε (1 - u) that Hoeffding's bound exp(-m KL(c ‖ ε)) = p refutes. The product of others with that
    mean is no smaller (log is concave), so nothing that Hoeffding refutes is missed, and much more is refuted where
    groups agree less than perfectly. The log of the product is concave and m KL convex in u, both from 0, so what is
    refuted at p is at every larger one, and the smallest p is a p-value. It needs no order of the losses, rises with
    each of them and falls with epsilon; stakes that adapt to the losses seen
    so far have more power, but none of these three.

    Args:
        losses: Bool only if by design they could not be fractions, not because they happen to be none.
        epsilon: (0, 1).
    Raises:
        InputError: no losses, or losses outside [0, 1].
    Source: Waudby-Smith & Ramdas 2024, arXiv:2010.09686, section 4 (betting); Hoeffding 1963, theorem 1.
    """
    m = len(losses)
    if m == 0 or not ((losses >= 0) & (losses <= 1)).all():
        raise InputError(f"{m} losses; expected some, each in [0, 1]")
    if losses.dtype == np.bool_:
        from scipy.special import bdtr

        return float(bdtr(losses.sum(), m, epsilon))
    odds = (epsilon - losses) / (1 - epsilon)
    low, high = 0.0, 1.0
    for _ in range(32):
        stake = (low + high) / 2
        enough = float(np.log1p(stake * odds).sum()) >= m * _divergence(epsilon * (1 - stake), epsilon)
        low, high = (stake, high) if enough else (low, stake)
    return exp(-m * _divergence(epsilon * (1 - low), epsilon))


def upper_bound(losses: Losses, delta: float) -> float:
    """The largest expected loss that the losses do not refute at level delta, [0, 1], to 1e-6."""
    low, high = float(losses.mean()), 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(losses, middle) > delta else (low, middle)
    return high


def _divergence(c: float, epsilon: float) -> float:
    """KL(c ‖ ε) of two coins, in nats; 0 < c ≤ ε."""
    return c * log(c / epsilon) + (1 - c) * log((1 - c) / (1 - epsilon))
