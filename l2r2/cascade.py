"""FG first; FULL only if FG was not enough. Pure policy: what to believe, when to stop, how to join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from l2r2.calibration import Temperature
from l2r2.conformal import PredictionSets
from l2r2.errors import InputError
from l2r2.fusion import Evidence, MaxScaledConfidence, Operator, Threshold
from l2r2.logspace import LogProbs, choose_rows, confidence, log_normalize
from l2r2.metrics import Labels, clustered_se
from l2r2.risk import certify
from l2r2.types import Stage

Prior = Float[np.ndarray, "n k"]

MAX_THRESHOLDS = 512
"""Candidates tried for the gate; beyond that, evenly spread quantiles of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Veto:
    """For classes whose confusion can do harm: the background and metadata may not decide (the paper's figure 10).

    Where the foreground alone is unsure, and the answer or at least `mass` of what the foreground thinks possible is
    hazardous, the answer is withheld, however sure FULL or the prior is.

    Attributes:
        hazardous: True for such a class.
        mass: Probability, [0, 1].
    """

    hazardous: Bool[np.ndarray, " k"]
    mass: float

    def withheld(
        self, alone: LogProbs, sure: Bool[np.ndarray, " n"], answer: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Where to say nothing.

        Args:
            alone: What the foreground says without metadata; FULL where nothing was found.
            sure: Where the foreground alone is sure; False where nothing was found.
            answer: What would be said.
        """
        possible = np.exp(alone[:, self.hazardous]).sum(axis=1) >= self.mass
        return ~sure & (possible | self.hazardous[answer])


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that turns logits into an answer.

    Attributes:
        temperatures: One a stage.
        operator: Joins FG and FULL once both have run.
        threshold: FG answers alone when its confidence, prior included, is above this; [0, 1].
        sets: What else the answer may be; None: no sets.
        veto: When to say nothing; None: never.
    """

    temperatures: Mapping[Stage, Temperature]
    operator: Operator
    threshold: float
    sets: PredictionSets | None = None
    veto: Veto | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"gate threshold is {self.threshold}; expected a confidence in [0, 1]")
        if isinstance(self.operator, Threshold) and self.operator.t != self.threshold:
            raise InputError(f"⊕R has t = {self.operator.t} and the gate {self.threshold}; expected the same number")

    def evidence(self, stage: Stage, logits: Float[np.ndarray, "n k"], log_prior: Prior) -> Evidence:
        """Calibrate a stage's logits and add the prior."""
        return Evidence(logits, log_normalize(self.temperatures[stage].soften(logits) + log_prior))

    def sure(self, fg: Evidence) -> Bool[np.ndarray, " n"]:
        """Where FG answers alone."""
        return confidence(fg.belief) > self.threshold

    def join(self, fg: Evidence, full: Evidence, found: Bool[np.ndarray, " n"], log_prior: Prior) -> LogProbs:
        """The answer where FULL has run: fused, or FULL's alone where nothing was found."""
        return choose_rows(found, self.operator(fg, full, log_prior), full.belief)

    def decide(
        self,
        fg_logits: Float[np.ndarray, "n k"],
        full_logits: Float[np.ndarray, "n k"],
        found: Bool[np.ndarray, " n"],
        log_prior: Prior,
    ) -> Decision:
        """The cascade's answers when the logits of both are at hand; FG's are ignored where nothing was found."""
        fg = self.evidence(Stage.FG, fg_logits, log_prior)
        full = self.evidence(Stage.FULL, full_logits, log_prior)
        alone = found & self.sure(fg)
        belief = choose_rows(alone, fg.belief, self.join(fg, full, found, log_prior))
        return Decision(belief, alone, self.withheld(fg_logits, full_logits, found, belief.argmax(axis=1)))

    def withheld(
        self,
        fg_logits: Float[np.ndarray, "n k"],
        full_logits: Float[np.ndarray, "n k"],
        found: Bool[np.ndarray, " n"],
        answer: Int[np.ndarray, " n"],
    ) -> Bool[np.ndarray, " n"]:
        """Where the veto speaks. FULL's logits are looked at where nothing was found."""
        if self.veto is None:
            return np.zeros(len(found), dtype=bool)
        fg = self.temperatures[Stage.FG].calibrate(fg_logits)
        full = self.temperatures[Stage.FULL].calibrate(full_logits)
        sure = found & (confidence(fg) > self.threshold)
        return self.veto.withheld(choose_rows(found, fg, full), sure, answer)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Answers of a cascade: log-probabilities, where FG alone gave them, and where the veto withholds them."""

    belief: LogProbs
    skipped_full: Bool[np.ndarray, " n"]
    withheld: Bool[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Accuracy against cost: one point a threshold, ascending."""

    threshold: Float[np.ndarray, " t"]
    accuracy: Float[np.ndarray, " t"]
    escalated: Float[np.ndarray, " t"]
    """Share of photographs that ran FULL, those with nothing found included."""


def trade_off(
    fg: Evidence, full: Evidence, found: Bool[np.ndarray, " n"], labels: Labels, operator: Operator, log_prior: Prior
) -> Curve:
    """The curve over every threshold that changes anything, from never escalating (0) to always (1)."""
    thresholds, right = _outcomes(fg, full, found, labels, operator, log_prior)
    escalated = ~found | (confidence(fg.belief) <= thresholds[:, None])
    return Curve(thresholds, right.mean(axis=1), escalated.mean(axis=1))


def choose_threshold(
    fg: Evidence,
    full: Evidence,
    found: Bool[np.ndarray, " n"],
    labels: Labels,
    groups: np.ndarray,
    operator: Operator,
    log_prior: Prior,
    rule: str = "one_se",
    epsilon: float = 0.02,
    delta: float = 0.1,
) -> float:
    """Choose the gate on validation.

    Args:
        rule: "best": the most accurate threshold, of equals the lowest. "one_se": the lowest threshold that is not
            worse than the best by more than one standard error of their paired difference (by group). Escalating more
            than the data ask for buys nothing on validation, and costs time and robustness everywhere else. "risk":
            the lowest threshold of which `l2r2.risk` certifies that answering alone loses at most `epsilon` of what
            always running both gets right, except with probability `delta`; it holds for photographs on which nothing
            else of the policy was fitted.
        epsilon, delta: Of "risk".
    Raises:
        InputError: no photographs, or another rule.
    Source: Breiman, Friedman, Olshen & Stone 1984, section 3.4.3 (the 1 SE rule), here on paired differences.
    """
    if len(labels) == 0:
        raise InputError("no photographs to choose the gate on; the validation split is empty")
    thresholds, right = _outcomes(fg, full, found, labels, operator, log_prior)
    accuracy = right.mean(axis=1)
    best = int(np.argmax(accuracy))
    if rule == "best":
        return float(thresholds[best])
    if rule == "risk":
        lost = right[-1] & ~right  # the last threshold, 1, always runs both
        return certify(thresholds, lost, groups, epsilon, delta).threshold
    if rule != "one_se":
        raise InputError(f"gate rule is {rule!r}; expected one_se, best or risk")
    for place in range(best):
        lost = right[best].astype(np.float64) - right[place]
        if lost.mean() <= clustered_se(lost, groups):
            return float(thresholds[place])
    return float(thresholds[best])


def _outcomes(
    fg: Evidence, full: Evidence, found: Bool[np.ndarray, " n"], labels: Labels, operator: Operator, log_prior: Prior
) -> tuple[Float[np.ndarray, " t"], Bool[np.ndarray, "t n"]]:
    """Candidate thresholds, and for each whether each photograph is answered rightly."""
    if isinstance(operator, Threshold):
        operator = MaxScaledConfidence()  # below its own t, ⊕R is this
    joined = choose_rows(found, operator(fg, full, log_prior), full.belief).argmax(axis=1) == labels
    alone = fg.belief.argmax(axis=1) == labels
    sure = confidence(fg.belief)
    steps = np.unique(np.concatenate([[0.0], sure[found], [1.0]]).clip(0.0, 1.0))
    if len(steps) > MAX_THRESHOLDS:
        steps = np.quantile(steps, np.linspace(0, 1, MAX_THRESHOLDS), method="nearest")
    thresholds = steps.astype(np.float64)
    return thresholds, np.where(found & (sure > thresholds[:, None]), alone, joined)
