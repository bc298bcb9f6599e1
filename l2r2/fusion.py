"""The paper's ways to make one answer of two (section 3.3, appendix B.3): pure operators, and what is fitted.

Every operator takes the evidence of FG and FULL and gives log-probabilities. Metadata enter each answer exactly once:
confidence operators compare or mix beliefs that already hold the prior; logit operators (FC, WL) combine logits and
add it after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from l2r2.errors import ArtifactError, InputError
from l2r2.logspace import LogProbs, choose_rows, confidence, log_normalize
from l2r2.metrics import Labels

Parameters = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one classifier says of n photographs.

    Attributes:
        logits: As they left the network.
        belief: Calibrated log-probabilities with the prior added.
    """

    logits: Float[np.ndarray, "n k"]
    belief: LogProbs


@runtime_checkable
class Operator(Protocol):
    """One way to fuse."""

    name: ClassVar[str]

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs: ...

    def parameters(self) -> dict[str, np.ndarray]:
        """What was fitted, as arrays; `make_operator` turns them back."""
        ...


@dataclass(frozen=True, slots=True)
class MaxConfidence:
    """⊕max: the more confident of the two as they left the networks (operator 1)."""

    name: ClassVar[str] = "max"

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs:
        return _surer(log_normalize(fg.logits + log_prior), log_normalize(full.logits + log_prior))

    def parameters(self) -> dict[str, np.ndarray]:
        return {}


@dataclass(frozen=True, slots=True)
class MaxScaledConfidence:
    """⊕smax: the more confident of the two calibrated beliefs (operator 2). FG wins ties."""

    name: ClassVar[str] = "smax"

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs:  # noqa: ARG002
        return _surer(fg.belief, full.belief)

    def parameters(self) -> dict[str, np.ndarray]:
        return {}


@dataclass(frozen=True, slots=True)
class Threshold:
    """⊕R: FG if its confidence is above t, else the more confident (operator 3), on calibrated beliefs.

    The paper compares uncalibrated confidences here; calibrated ones give t a meaning that survives a retraining.
    """

    t: float
    name: ClassVar[str] = "R"

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs:  # noqa: ARG002
        return choose_rows(confidence(fg.belief) > self.t, fg.belief, _surer(fg.belief, full.belief))

    def parameters(self) -> dict[str, np.ndarray]:
        return {"t": np.array(self.t)}


@dataclass(frozen=True, slots=True)
class Average:
    """Weighted mean of the calibrated beliefs: ⊕avg has weight ½ (operator 4), ⊕wavg a fitted one (operator 5)."""

    weight: float = 0.5
    """Of FG, [0, 1]."""
    name: ClassVar[str] = "wavg"

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs:  # noqa: ARG002
        with np.errstate(divide="ignore"):
            a, b = np.log(self.weight), np.log(1.0 - self.weight)
        return np.logaddexp(fg.belief + fg.belief.dtype.type(a), full.belief + full.belief.dtype.type(b))

    def parameters(self) -> dict[str, np.ndarray]:
        return {"weight": np.array(self.weight)}


@dataclass(frozen=True, slots=True)
class WeightedLogits:
    """⊕WL: w₁ z₁ + w₂ z₂ with one weight a class and input (operator 9)."""

    w_fg: Float[np.ndarray, " k"]
    w_full: Float[np.ndarray, " k"]
    name: ClassVar[str] = "WL"

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs:
        return log_normalize(self.w_fg * fg.logits + self.w_full * full.logits + log_prior)

    def parameters(self) -> dict[str, np.ndarray]:
        return {"w_fg": self.w_fg, "w_full": self.w_full}


@dataclass(frozen=True, slots=True)
class FullyConnected:
    """⊕FC: a shallow network on the concatenated, standardised logits (operator 8): one hidden ReLU layer."""

    mean: Float[np.ndarray, " two_k"]
    scale: Float[np.ndarray, " two_k"]
    w1: Float[np.ndarray, "two_k hidden"]
    b1: Float[np.ndarray, " hidden"]
    w2: Float[np.ndarray, "hidden k"]
    b2: Float[np.ndarray, " k"]
    name: ClassVar[str] = "FC"

    def __call__(self, fg: Evidence, full: Evidence, log_prior: Float[np.ndarray, "n k"]) -> LogProbs:
        x = (np.concatenate([fg.logits, full.logits], axis=1) - self.mean) / self.scale
        return log_normalize(np.maximum(x @ self.w1 + self.b1, 0) @ self.w2 + self.b2 + log_prior)

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("mean", "scale", "w1", "b1", "w2", "b2")}


def make_operator(name: str, parameters: Parameters) -> Operator:
    """Rebuild an operator from its name and fitted arrays.

    Raises:
        ArtifactError: no such operator, or parameters are missing.
    """
    try:
        match name:
            case "max":
                return MaxConfidence()
            case "smax":
                return MaxScaledConfidence()
            case "R":
                return Threshold(float(parameters["t"]))
            case "wavg":
                return Average(float(parameters["weight"]))
            case "WL":
                return WeightedLogits(parameters["w_fg"], parameters["w_full"])
            case "FC":
                return FullyConnected(**{key: parameters[key] for key in ("mean", "scale", "w1", "b1", "w2", "b2")})
    except KeyError as error:
        raise ArtifactError(f"fusion operator {name!r} lacks its parameter {error}; export the bundle again") from None
    raise ArtifactError(f"fusion operator {name!r} is unknown; expected max, smax, R, wavg, WL or FC")


def oracle(fg: LogProbs, full: LogProbs, labels: Labels) -> Bool[np.ndarray, " n"]:
    """Right if any input is right: what perfect fusion by choice could reach."""
    return (fg.argmax(axis=1) == labels) | (full.argmax(axis=1) == labels)


def fit_average(fg: Evidence, full: Evidence, labels: Labels) -> Average:
    """The weight in 0, 0.01, … 1 with the best validation accuracy; of equals the one nearest ½."""
    weights = sorted(np.linspace(0, 1, 101), key=lambda w: abs(w - 0.5))
    none = np.zeros_like(fg.belief)
    scores = [(Average(w)(fg, full, none).argmax(axis=1) == labels).mean() for w in weights]
    return Average(float(weights[int(np.argmax(scores))]))


def fit_threshold(fg: Evidence, full: Evidence, labels: Labels) -> Threshold:
    """The t with the best validation accuracy, as the paper; of equals the lowest, which limits FULL's influence."""
    sure = confidence(fg.belief)
    alone = fg.belief.argmax(axis=1) == labels
    both = _surer(fg.belief, full.belief).argmax(axis=1) == labels
    candidates = np.concatenate([[0.0], np.unique(sure)])
    scores = [np.where(sure > t, alone, both).mean() for t in candidates]
    return Threshold(float(candidates[int(np.argmax(scores))]))


def fit_weighted_logits(
    z_fg: Float[np.ndarray, "n k"], z_full: Float[np.ndarray, "n k"], labels: Labels
) -> WeightedLogits:
    """Minimise the cross entropy over the 2 k weights by L-BFGS, from ½ each."""
    from scipy.optimize import minimize

    n, k = _checked_pair(z_fg, z_full, labels)
    a, b = z_fg.astype(np.float64), z_full.astype(np.float64)
    truth = np.eye(k)[labels]

    def loss(w: Float[np.ndarray, " two_k"]) -> tuple[float, Float[np.ndarray, " two_k"]]:
        log_probs = log_normalize(w[:k] * a + w[k:] * b)
        error = (np.exp(log_probs) - truth) / n
        return -float((log_probs * truth).sum() / n), np.concatenate([(error * a).sum(axis=0), (error * b).sum(axis=0)])

    # Logits of the training split are often separable; without the bound the weights would grow for ever.
    found = minimize(loss, np.full(2 * k, 0.5), jac=True, method="L-BFGS-B", bounds=[(-10.0, 10.0)] * (2 * k))
    weights = found.x.astype(np.float32)
    return WeightedLogits(weights[:k], weights[k:])


def fit_fully_connected(
    z_fg: Float[np.ndarray, "n k"], z_full: Float[np.ndarray, "n k"], labels: Labels, hidden: int = 64, seed: int = 0
) -> FullyConnected:
    """Fit the shallow network with scikit-learn's MLPClassifier (cross entropy, L-BFGS, weight decay 1e-2).

    Raises:
        InputError: a class is absent, so that the network would have no output for it.
    """
    from sklearn.neural_network import MLPClassifier

    _, k = _checked_pair(z_fg, z_full, labels)
    if len(np.unique(labels)) != k or k < 2:
        raise InputError(f"FC needs photographs of at least two classes and of all {k}; got {len(np.unique(labels))}")
    x = np.concatenate([z_fg, z_full], axis=1).astype(np.float64)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    net = MLPClassifier((hidden,), alpha=1e-2, solver="lbfgs", max_iter=2000, random_state=seed)
    net.fit((x - mean) / scale, labels)
    (w1, w2), (b1, b2) = net.coefs_, net.intercepts_
    if k == 2:  # scikit-learn keeps one output for two classes: the log-odds of the second
        w2, b2 = np.concatenate([-w2 / 2, w2 / 2], axis=1), np.concatenate([-b2 / 2, b2 / 2])
    return FullyConnected(*(part.astype(np.float32) for part in (mean, scale, w1, b1, w2, b2)))


def _surer(fg: LogProbs, full: LogProbs) -> LogProbs:
    return choose_rows(fg.max(axis=1) >= full.max(axis=1), fg, full)


def _checked_pair(z_fg: np.ndarray, z_full: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    if z_fg.shape != z_full.shape or len(z_fg) != len(labels) or len(labels) == 0:
        raise InputError(
            f"logits {z_fg.shape} and {z_full.shape} for {len(labels)} labels; expected equal shapes, n > 0"
        )
    return z_fg.shape[0], z_fg.shape[1]
