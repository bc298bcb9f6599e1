"""Probabilities as natural logarithms: nothing underflows and evidence adds up."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

LogProbs = Float[np.ndarray, "n k"]
"""Natural logarithms of probabilities; each row's exponentials sum to 1."""


def log_normalize(scores: Float[np.ndarray, "n k"]) -> LogProbs:
    """Turn each row into log-probabilities (log-softmax)."""
    shifted = scores - scores.max(axis=-1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def choose_rows(
    where: Bool[np.ndarray, " n"], a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    """Rows of `a` where true, of `b` elsewhere; not copied where all are of one."""
    if where.all():
        return a
    return np.where(where[:, None], a, b) if where.any() else b


def confidence(log_probs: LogProbs) -> Float[np.ndarray, " n"]:
    """Each row's highest probability, [0, 1]."""
    return np.exp(log_probs.max(axis=-1))
