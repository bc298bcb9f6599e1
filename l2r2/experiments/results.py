"""Every system on every split, seed by seed: what the paper's tables are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool

from l2r2.calibration import Temperature
from l2r2.config import Recipe
from l2r2.experiments.pairs import Pair
from l2r2.experiments.splits import CROSSFIT, Member, Split
from l2r2.experiments.systems import Systems, df20_beliefs, fit_metadata, shuffle
from l2r2.logspace import log_normalize
from l2r2.metrics import macro_accuracy
from l2r2.priors import Priors
from l2r2.types import View

SCHEMA = {
    "split": pl.String,
    "system": pl.String,
    "seed": pl.Int64,
    "metric": pl.String,
    "value": pl.Float64,
    "n": pl.Int64,
}
"""metric is accuracy or macro (the mean of the classes' accuracies), value in [0, 1], n photographs."""

Row = tuple[str, int, Bool[np.ndarray, " n"]]
"""System, seed, where it is right."""


def results(
    splits: Mapping[str, Split], recipe: Recipe, systems: Systems | None, untrained: Sequence[Pair] = ()
) -> pl.DataFrame:
    """One row a split, system, seed and metric.

    Systems are named by their views: FULL, FG_C, FG_C⊕max FULL, FG_C⊕* FULL (the best on validation), Oracle FG_C FULL,
    FULL×2, FULL+habitat, FULL+habitat, df20 (the published formula), FULL+shuffled habitat (the control), …

    Args:
        systems: None where nothing was fitted.
        untrained: Pairs to fuse by ⊕max alone.
    """
    informed = [] if systems is None else _informed(splits, systems, recipe)
    rows = []
    for split in splits.values():
        if split.name == CROSSFIT:
            continue
        found = list(_alone(split))
        found += [row for pair in untrained for row in _fused(pair, split, 0)]
        if systems is not None:
            for pairs in systems.pairs.values():
                found += [row for seed, pair in enumerate(pairs) for row in _fused(pair, split, seed)]
            for view, pairs in systems.doubles.items():
                found += [
                    (f"{view}×2", seed, pair.fuse(pair.best, split).argmax(axis=1) == split.labels)
                    for seed, pair in enumerate(pairs)
                ]
        if split.name != "train":
            found += [row for one in informed for row in one.judge(split)]
        for system, seed, right in found:
            n = len(split.labels)
            rows.append((split.name, system, seed, "accuracy", float(right.mean()), n))
            rows.append((split.name, system, seed, "macro", macro_accuracy(right, split.labels), n))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def per_class(splits: Mapping[str, Split], systems: Systems | None, class_names: Sequence[str]) -> pl.DataFrame:
    """Accuracy of each class, mean over seeds: split, system, class, accuracy, n (photographs)."""
    rows = []
    for split in splits.values():
        if split.name in {CROSSFIT, "train"}:
            continue
        found = list(_alone(split))
        for pairs in systems.pairs.values() if systems is not None else ():
            found += [row for seed, pair in enumerate(pairs) for row in _fused(pair, split, seed)]
        by_system: dict[str, list[np.ndarray]] = {}
        for system, _, right in found:
            by_system.setdefault(system, []).append(right)
        for system, rights in by_system.items():
            mean = np.mean(rights, axis=0)
            for k in np.unique(split.labels):
                mine = split.labels == k
                rows.append((split.name, system, class_names[k], float(mean[mine].mean()), int(mine.sum())))
    schema = {"split": pl.String, "system": pl.String, "class": pl.String, "accuracy": pl.Float64, "n": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _alone(split: Split) -> Iterator[Row]:
    for (view, seed), logits in split.logits.items():
        yield str(view), seed, logits.argmax(axis=1) == split.labels


def _fused(pair: Pair, split: Split, seed: int) -> Iterator[Row]:
    first, second = pair.first[0], pair.second[0]
    for name in pair.operators:
        yield f"{first}⊕{name} {second}", seed, pair.fuse(name, split).argmax(axis=1) == split.labels
    yield f"{first}⊕* {second}", seed, pair.fuse(pair.best, split).argmax(axis=1) == split.labels
    yield f"Oracle {first} {second}", seed, pair.oracle(split)


@dataclass(frozen=True, slots=True, eq=False)
class _Informed:
    """One classifier with one choice of metadata sources, fitted; and with shuffled ones."""

    member: Member
    temperature: Temperature
    name: str
    own: Priors
    control: Priors

    def judge(self, split: Split) -> Iterator[Row]:
        """The paper's table 4: ours, the published formula, the control."""
        view, seed = self.member
        belief = self.temperature.calibrate(split.logits[self.member])
        ways = {
            f"{view}+{self.name}": log_normalize(belief + self.own.log_prior(split.metadata)),
            f"{view}+{self.name}, df20": df20_beliefs(self.own, belief, split.metadata),
            f"{view}+shuffled {self.name}": log_normalize(belief + self.control.log_prior(shuffle(split))),
        }
        for system, answer in ways.items():
            yield system, seed, answer.argmax(axis=1) == split.labels


def _informed(splits: Mapping[str, Split], systems: Systems, recipe: Recipe) -> list[_Informed]:
    """FULL and FG of each seed with each source alone and with all."""
    train, val, cap = splits["train"], splits["val"], recipe.prior.cap
    known = {source for values in train.metadata for source in values}
    sources = [source for source in recipe.prior.sources if source in known]
    choices = {source: [source] for source in sources} | ({"metadata": sources} if sources else {})
    own, shuffled = [train.metadata, val.metadata], [shuffle(train), shuffle(val)]
    found = []
    for pair in next(pairs for (_, second), pairs in systems.pairs.items() if second is View.FULL):
        for member, temperature in zip((pair.first, pair.second), pair.temperatures, strict=True):
            belief = temperature.calibrate(val.logits[member])
            for name, chosen in choices.items():
                fitted = [fit_metadata(train, val, belief, chosen, metadata, cap) for metadata in (own, shuffled)]
                found.append(_Informed(member, temperature, name, *fitted))
    return found
