"""Two classifiers and every way of the paper to join them, fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32

from l2r2.calibration import Temperature, fit_classwise_temperature, fit_temperature
from l2r2.cascade import Policy
from l2r2.config import Recipe
from l2r2.experiments.splits import Member, Split
from l2r2.fusion import (
    Average,
    Evidence,
    MaxConfidence,
    MaxScaledConfidence,
    Operator,
    fit_average,
    fit_fully_connected,
    fit_threshold,
    fit_weighted_logits,
    oracle,
)
from l2r2.logspace import LogProbs, choose_rows, log_normalize
from l2r2.types import Stage, View

FITTED_ON_LOGITS = ("FC", "WL")
"""Operators whose weights come from the split that `fusion.fit_on` names; the others need validation alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two classifiers, calibrated, with every operator fitted for them.

    Attributes:
        fallback: Who answers where nothing was found; None: the fusion as anywhere (two seeds of one view).
        operators: Display name (max, smax, R, avg, wavg, FC, WL) → operator.
        best: The most accurate on validation; of equals the first.
    """

    first: Member
    second: Member
    fallback: Member | None
    temperatures: tuple[Temperature, Temperature]
    operators: Mapping[str, Operator]
    best: str

    def evidence(self, split: Split, log_prior: Float32[np.ndarray, "n k"]) -> tuple[Evidence, Evidence]:
        """What each says of a split."""
        policy = Policy({Stage.FG: self.temperatures[0], Stage.FULL: self.temperatures[1]}, MaxConfidence(), 0.0)
        return (
            policy.evidence(Stage.FG, split.logits[self.first], log_prior),
            policy.evidence(Stage.FULL, split.logits[self.second], log_prior),
        )

    def fuse(self, name: str, split: Split) -> LogProbs:
        """One operator's answers, without metadata."""
        nothing = np.zeros_like(split.logits[self.first])
        first, second = self.evidence(split, nothing)
        fused = self.operators[name](first, second, nothing)
        if self.fallback is None:
            return fused
        alone = second.belief if self.fallback == self.second else log_normalize(split.logits[self.fallback])
        return choose_rows(split.found, fused, alone)

    def oracle(self, split: Split) -> Bool[np.ndarray, " n"]:
        """Where one of the two is right."""
        return oracle(split.logits[self.first], split.logits[self.second], split.labels)


def fit_pair(
    val: Split, source: Split | None, first: Member, second: Member, fallback: Member | None, recipe: Recipe
) -> Pair:
    """Fit temperatures and operators: FC and WL on `source` (without it they are left out), all else on validation."""
    fit = fit_temperature if recipe.calibration.kind == "single" else fit_classwise_temperature
    temperatures = (fit(val.logits[first], val.labels), fit(val.logits[second], val.labels))
    pair = Pair(first, second, fallback, temperatures, {}, "")
    a, b = pair.evidence(val, np.zeros_like(val.logits[first]))
    operators: dict[str, Operator] = {
        "max": MaxConfidence(),
        "smax": MaxScaledConfidence(),
        "R": fit_threshold(a, b, val.labels),
        "avg": Average(),
        "wavg": fit_average(a, b, val.labels),
    }
    if source is not None:
        z, labels = (source.logits[first], source.logits[second]), source.labels
        operators["FC"] = fit_fully_connected(*z, labels, recipe.fusion.fc_hidden)
        operators["WL"] = fit_weighted_logits(*z, labels)
    pair = replace(pair, operators=operators)
    right = {name: (pair.fuse(name, val).argmax(axis=1) == val.labels).mean() for name in operators}
    return replace(pair, best=max(right, key=lambda name: right[name]))


def untrained_pair(first: Member, second: Member, fallback: Member | None) -> Pair:
    """⊕max alone, uncalibrated: what needs no data (the paper's section 4.3)."""
    ones = Temperature(np.ones(1)), Temperature(np.ones(1))
    return Pair(first, second, fallback, ones, {"max": MaxConfidence()}, "max")


def untrained_answers(pair: Pair, split: Split) -> dict[str, LogProbs]:
    """FG, FULL, ⊕max and every other view of a split, by the names that tables use; pair is FG with FULL."""
    own = {pair.first: "FG", pair.second: "FULL"}
    found = {own.get(member, str(member[0])): log_normalize(logits) for member, logits in split.logits.items()}
    return found | {"FG⊕max FULL": pair.fuse("max", split)}


def foreground(views: tuple[View, ...]) -> View | None:
    """The foreground view that fusions and the cascade take: the recipe's first."""
    return next((view for view in views if view in {View.FG_C, View.FG_M}), None)


def background(views: tuple[View, ...]) -> View | None:
    """The background view that fusions take: the recipe's first."""
    return next((view for view in views if view in {View.BG_S, View.BG_B}), None)
