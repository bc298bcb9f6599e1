"""Every way to answer that a table compares, fitted on train and validation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int

from l2r2.calibration import Temperature, fit_classwise_temperature, fit_temperature
from l2r2.cascade import Policy, choose_threshold
from l2r2.config import Recipe
from l2r2.datasets import Dataset
from l2r2.fusion import (
    Average,
    Evidence,
    MaxConfidence,
    MaxScaledConfidence,
    Operator,
    Threshold,
    fit_average,
    fit_fully_connected,
    fit_threshold,
    fit_weighted_logits,
)
from l2r2.logspace import LogProbs, log_normalize
from l2r2.priors import Priors, count_priors, df20_scores, fit_priors
from l2r2.types import Metadata, Stage

Member = tuple[Stage, int]
"""A classifier: its stage and which seed, 0 being the deployed one."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split with the logits of every classifier; rows in the data set's order."""

    name: str
    digests: Sequence[str]
    labels: Int[np.ndarray, " n"]
    groups: np.ndarray
    found: Bool[np.ndarray, " n"]
    metadata: Sequence[Metadata]
    logits: Mapping[Member, Float32[np.ndarray, "n k"]]


def load_splits(dataset: Dataset, tables: Mapping[Member, Path], sources: Sequence[str]) -> dict[str, Split]:
    """Join the classifiers' logits tables with the data set, by digest."""
    # Two copies of a photograph in one split have one row of logits each, and the same.
    frames = {member: pl.read_parquet(path).unique(["digest", "split"]) for member, path in tables.items()}
    first = next(iter(frames.values()))
    splits = {}
    for name in first["split"].unique().sort():
        part = dataset.split(name)
        order = part.table.select("digest")
        parts = {
            member: order.join(frame.filter(pl.col("split") == name), "digest", how="left", maintain_order="left")
            for member, frame in frames.items()
        }
        some = next(iter(parts.values()))
        splits[name] = Split(
            name=name,
            digests=part.table["digest"].to_list(),
            labels=part.labels(),
            groups=part.groups(),
            found=some["found"].to_numpy().astype(bool),
            metadata=part.metadata(sources),
            logits={member: frame["logits"].to_numpy().astype(np.float32) for member, frame in parts.items()},
        )
    return splits


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two classifiers, calibrated, with every operator fitted for them."""

    first: Member
    second: Member
    temperatures: tuple[Temperature, Temperature]
    operators: Mapping[str, Operator]
    """Display name (max, smax, R, avg, wavg, FC, WL) → operator."""
    best: str
    """The most accurate on validation; of equals the first."""

    def evidence(self, split: Split, log_prior: Float32[np.ndarray, "n k"]) -> tuple[Evidence, Evidence]:
        """What each says of a split."""
        policy = Policy({Stage.FG: self.temperatures[0], Stage.FULL: self.temperatures[1]}, MaxConfidence(), 0.0)
        return (
            policy.evidence(Stage.FG, split.logits[self.first], log_prior),
            policy.evidence(Stage.FULL, split.logits[self.second], log_prior),
        )

    def fuse(self, name: str, split: Split) -> LogProbs:
        """One operator's answers, without metadata; where nothing was found, the second's."""
        nothing = np.zeros_like(split.logits[self.first])
        first, second = self.evidence(split, nothing)
        fused = self.operators[name](first, second, nothing)
        if self.first[0] is self.second[0]:
            return fused
        return np.where(split.found[:, None], fused, second.belief)


def fit_pair(splits: Mapping[str, Split], first: Member, second: Member, recipe: Recipe) -> Pair:
    """Fit temperatures and operators: WL and FC on the split that the recipe names, all else on validation."""
    val = splits["val"]
    fit = fit_temperature if recipe.calibration.kind == "single" else fit_classwise_temperature
    temperatures = (fit(val.logits[first], val.labels), fit(val.logits[second], val.labels))
    source = splits[recipe.fusion.fit_on]
    pair = Pair(first, second, temperatures, {}, "")
    a, b = pair.evidence(val, np.zeros_like(val.logits[first]))
    z, labels = (source.logits[first], source.logits[second]), source.labels
    operators: dict[str, Operator] = {
        "max": MaxConfidence(),
        "smax": MaxScaledConfidence(),
        "R": fit_threshold(a, b, val.labels),
        "avg": Average(),
        "wavg": fit_average(a, b, val.labels),
        "FC": fit_fully_connected(*z, labels, recipe.fusion.fc_hidden),
        "WL": fit_weighted_logits(*z, labels),
    }
    pair = Pair(first, second, temperatures, operators, "")
    right = {name: (pair.fuse(name, val).argmax(axis=1) == val.labels).mean() for name in operators}
    return Pair(first, second, temperatures, operators, max(right, key=lambda name: right[name]))


@dataclass(frozen=True, slots=True, eq=False)
class Systems:
    """Everything fitted in one experiment."""

    fg_full: Pair
    doubles: Mapping[Stage, Pair]
    """Two seeds of one view; empty with a single seed."""
    policy: Policy
    priors: Priors
    shuffled: Priors
    """Counted and fitted on metadata shuffled among the photographs of each split: the control."""

    def answers(self, split: Split) -> dict[str, LogProbs]:
        """System → log-probabilities of one split."""
        nothing = np.zeros_like(split.logits[self.fg_full.first])
        prior = self.priors.log_prior(split.metadata)
        control = self.shuffled.log_prior(shuffle(split))
        fg, full = self.fg_full.evidence(split, nothing)
        fg_known, full_known = self.fg_full.evidence(split, prior)
        found: dict[str, LogProbs] = {"FULL": full.belief, "FG": fg.belief}
        found |= {f"FG⊕{name} FULL": self.fg_full.fuse(name, split) for name in self.fg_full.operators}
        found["FG⊕* FULL"] = found[f"FG⊕{self.fg_full.best} FULL"]
        found |= {f"{stage}×2": pair.fuse(pair.best, split) for stage, pair in self.doubles.items()}
        found["cascade"] = self._cascade(split, nothing)
        found |= {"FULL+metadata": full_known.belief, "FG+metadata": fg_known.belief}
        found["FG+metadata, df20"] = _log(df20_scores(self.priors, np.exp(fg.belief), split.metadata))
        found["cascade+metadata"] = self._cascade(split, prior)
        found["cascade+shuffled metadata"] = self._cascade(split, control)
        return found

    def _cascade(self, split: Split, log_prior: Float32[np.ndarray, "n k"]) -> LogProbs:
        return self.policy.decide(*self.deployed(split), split.found, log_prior).belief

    def deployed(self, split: Split) -> tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """Logits of the deployed FG and FULL."""
        return split.logits[self.fg_full.first], split.logits[self.fg_full.second]

    def validation_rates(self, val: Split) -> dict[str, float]:
        """What the service's own rates can be held against."""
        prior = self.priors.log_prior(val.metadata)
        z_fg, z_full = self.deployed(val)
        known = self.policy.decide(z_fg, z_full, val.found, prior)
        plain = self.policy.decide(z_fg, z_full, val.found, np.zeros_like(prior))
        differ = val.found & (z_fg.argmax(axis=1) != z_full.argmax(axis=1))
        flipped = known.belief.argmax(axis=1) != plain.belief.argmax(axis=1)
        return {
            "escalated": float(1 - known.skipped_full.mean()),
            "nothing_found": float(1 - val.found.mean()),
            "disagreement": float(differ.sum() / max(val.found.sum(), 1)),
            "flipped_by_prior": float(flipped.mean()),
            "unrecognized": float(np.mean([bool(self.priors.unrecognized(values)) for values in val.metadata])),
        }


def fit_systems(splits: Mapping[str, Split], recipe: Recipe) -> Systems:
    """Fit every system on train and validation; test sets are not looked at."""
    val = splits["val"]
    fg_full = fit_pair(splits, (Stage.FG, 0), (Stage.FULL, 0), recipe)
    seeds = {stage for stage, seed in val.logits if seed == 1}
    doubles = {
        stage: fit_pair(splits, (stage, 0), (stage, 1), recipe) for stage in (Stage.FULL, Stage.FG) if stage in seeds
    }
    nothing = np.zeros_like(val.logits[fg_full.first])
    fg, full = fg_full.evidence(val, nothing)
    named = fg_full.best if recipe.fusion.operator == "best" else recipe.fusion.operator
    operator = fg_full.operators[named]
    threshold = recipe.gate.threshold
    if threshold is None:
        threshold = choose_threshold(
            fg, full, val.found, val.labels, val.groups, operator, nothing, rule=recipe.gate.rule
        )
    if isinstance(operator, Threshold):
        operator = Threshold(threshold)
    temperatures = dict(zip((Stage.FG, Stage.FULL), fg_full.temperatures, strict=True))
    return Systems(
        fg_full=fg_full,
        doubles=doubles,
        policy=Policy(temperatures, operator, threshold),
        priors=_priors(splits, fg.belief, recipe.prior.sources, [s.metadata for s in (splits["train"], val)]),
        shuffled=_priors(splits, fg.belief, recipe.prior.sources, [shuffle(s) for s in (splits["train"], val)]),
    )


def shuffle(split: Split) -> list[Metadata]:
    """A split's metadata on other photographs: always the same way, and another way for each split."""
    order = np.random.default_rng(list(split.name.encode())).permutation(len(split.metadata))
    return [split.metadata[i] for i in order]


def _log(scores: Float64[np.ndarray, "n k"]) -> LogProbs:
    """Unsmoothed scores may be 0; one that underflows stays the least likely."""
    return log_normalize(np.log(np.maximum(scores, np.finfo(np.float64).tiny)))


def _priors(
    splits: Mapping[str, Split], belief: LogProbs, sources: Sequence[str], metadata: Sequence[Sequence[Metadata]]
) -> Priors:
    train, val = metadata
    columns = {source: [values.get(source) for values in train] for source in sources}
    counted = count_priors(splits["train"].labels, columns, belief.shape[1])
    return fit_priors(counted, belief, val, splits["val"].labels)
