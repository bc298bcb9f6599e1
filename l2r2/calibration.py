"""From logits to probabilities that mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from l2r2.errors import InputError
from l2r2.logspace import LogProbs, log_normalize
from l2r2.metrics import Labels, ece, nll

BOUNDS = (0.05, 20.0)
"""Range of a fitted temperature; unbounded fits are known to run away."""


@dataclass(frozen=True, slots=True, eq=False)
class Temperature:
    """One positive temperature, or one a class; above 1 lowers confidence.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; a class: Frenkel & Goldberger 2021 (the paper's equation 3).
    """

    values: Float[np.ndarray, " k_or_1"]

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not np.all(np.isfinite(self.values) & (self.values > 0)):
            raise InputError(f"temperature is {self.values}; expected positive, finite numbers, one or one a class")

    def calibrate(self, logits: Float[np.ndarray, "n k"]) -> LogProbs:
        """Soften logits and normalise. A single temperature never changes the ranking.

        Raises:
            InputError: there are temperatures for another number of classes.
        """
        return log_normalize(self.soften(logits))

    def soften(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """z / T, for a sum that is normalised once, later. Raises as `calibrate`."""
        if len(self.values) not in {1, logits.shape[1]}:
            raise InputError(
                f"{len(self.values)} temperatures for {logits.shape[1]} classes; expected one or one a class"
            )
        return logits / self.values.astype(logits.dtype)


def no_temperature() -> Temperature:
    """T = 1: logits as they are."""
    return Temperature(np.ones(1))


def fit_temperature(logits: Float[np.ndarray, "n k"], labels: Labels) -> Temperature:
    """Minimise the NLL over log T in `BOUNDS`; stay at 1 when that does not improve it.

    Raises:
        InputError: no photographs, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    logits = _checked(logits, labels)

    def loss(log_temperature: float) -> float:
        return nll(log_normalize(logits / np.exp(log_temperature)), labels)

    best = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-4})
    return Temperature(np.array([np.exp(best.x)])) if best.fun < loss(0.0) else no_temperature()


def fit_classwise_temperature(
    logits: Float[np.ndarray, "n k"], labels: Labels, grid: Float[np.ndarray, " g"] | None = None
) -> Temperature:
    """Greedy search for one temperature a class: lower the ECE, never the accuracy.

    Starts from the single temperature and visits the classes in order, once.
    Source: Frenkel & Goldberger 2021, as the paper's appendix B.3 describes it.
    """
    logits = _checked(logits, labels)
    start = fit_temperature(logits, labels).values[0]
    steps = np.geomspace(0.5, 2.0, 17) if grid is None else grid
    values = np.full(logits.shape[1], start)

    def score(candidate: Float[np.ndarray, " k"]) -> tuple[float, float]:
        log_probs = log_normalize(logits / candidate)
        return ece(log_probs, labels), float((log_probs.argmax(axis=1) == labels).mean())

    best, accuracy = score(values)
    for k in range(logits.shape[1]):
        for value in np.clip(start * steps, *BOUNDS):
            candidate = values.copy()
            candidate[k] = value
            error, right = score(candidate)
            if error < best and right >= accuracy:
                best, accuracy, values = error, right, candidate
    return Temperature(values)


def _checked(logits: Float[np.ndarray, "n k"], labels: Labels) -> Float[np.ndarray, "n k"]:
    if len(labels) == 0:
        raise InputError("no photographs to calibrate on; the validation split is empty")
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise InputError(
            f"{bad} of {len(labels)} rows of logits are not finite; expected numbers, look at the training"
        )
    return logits.astype(np.float64)
