"""Every way to answer that a table compares, fitted on train and validation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64

from l2r2.cascade import Policy, Veto, choose_threshold
from l2r2.config import Recipe
from l2r2.conformal import fit_sets
from l2r2.errors import ConfigError
from l2r2.experiments.pairs import Pair, background, fit_pair, foreground
from l2r2.experiments.splits import Member, Split
from l2r2.fusion import Threshold
from l2r2.logspace import LogProbs, log_normalize
from l2r2.priors import Priors, count_priors, df20_scores, fit_priors
from l2r2.types import Metadata, Stage, View


@dataclass(frozen=True, slots=True, eq=False)
class Systems:
    """Everything fitted in one experiment.

    Attributes:
        pairs: (first view, second view) → one pair a seed: FG with FULL, and FG with BG where the recipe has one.
        doubles: View → two seeds of it, one pair a seed (its own and the next); empty with a single seed.
        policy: What is deployed: FG and FULL of the first seed.
        priors: Of the deployed cascade, all sources.
        shuffled: Counted and fitted on metadata shuffled among the photographs of each split: the control.
    """

    pairs: Mapping[tuple[View, View], Sequence[Pair]]
    doubles: Mapping[View, Sequence[Pair]]
    policy: Policy
    priors: Priors
    shuffled: Priors

    @property
    def fg_full(self) -> Pair:
        """The deployed pair."""
        return next(pairs for (_, second), pairs in self.pairs.items() if second is View.FULL)[0]

    def answers(self, split: Split) -> dict[str, LogProbs]:
        """System → log-probabilities of one split, of the first seed; FG and FULL are the deployed views."""
        deployed = self.fg_full
        nothing = np.zeros_like(split.logits[deployed.first])
        prior = self.priors.log_prior(split.metadata)
        fg, full = deployed.evidence(split, nothing)
        fg_known, full_known = deployed.evidence(split, prior)
        found: dict[str, LogProbs] = {"FULL": full.belief, "FG": fg.belief}
        others = [
            view for view, seed in split.logits if seed == 0 and (view, 0) not in {deployed.first, deployed.second}
        ]
        found |= {str(view): log_normalize(split.logits[view, 0]) for view in others}
        for (_, second), (pair, *_) in self.pairs.items():
            found |= {f"FG⊕{name} {second}": pair.fuse(name, split) for name in pair.operators}
            found[f"FG⊕* {second}"] = pair.fuse(pair.best, split)
        for view, (pair, *_) in self.doubles.items():
            name = "FG" if (view, 0) == deployed.first else str(view)
            found[f"{name}×2"] = pair.fuse(pair.best, split)
        found["cascade"] = self._cascade(split, nothing)
        found |= {"FULL+metadata": full_known.belief, "FG+metadata": fg_known.belief}
        found["FG+metadata, df20"] = df20_beliefs(self.priors, fg.belief, split.metadata)
        found["cascade+metadata"] = self._cascade(split, prior)
        found["cascade+shuffled metadata"] = self._cascade(split, self.shuffled.log_prior(shuffle(split)))
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
        both = val.found & ~known.skipped_full
        fg, full = self.policy.evidence(Stage.FG, z_fg, prior), self.policy.evidence(Stage.FULL, z_full, prior)
        seen = both & (fg.belief.argmax(axis=1) != full.belief.argmax(axis=1))
        flipped = known.belief.argmax(axis=1) != plain.belief.argmax(axis=1)
        rates = {
            "photographs": float(len(val.found)),
            "confidence": float(np.exp(known.belief.max(axis=1)).mean()),
            "escalated": float(1 - known.skipped_full.mean()),
            "nothing_found": float(1 - val.found.mean()),
            "disagreement": float(differ.sum() / max(val.found.sum(), 1)),
            "disagreement_where_both_ran": float(seen.sum() / max(both.sum(), 1)),  # all that a service gets to see
            "flipped_by_prior": float(flipped.mean()),
            "withheld": float(known.withheld.mean()),
            "unrecognized": float(np.mean([bool(self.priors.unrecognized(values)) for values in val.metadata])),
        }
        if self.policy.sets is not None:
            rates["set_size"] = float(self.policy.sets.members(known.belief).sum(axis=1).mean())
        return rates


def fit_systems(
    splits: Mapping[str, Split], recipe: Recipe, hazardous: Bool[np.ndarray, " k"] | None = None
) -> Systems:
    """Fit every system on train and validation; test sets are not looked at.

    With the gate's rule "risk" half of validation's groups fit temperatures, operators and priors, and the other half
    certifies the gate: only so does its guarantee hold exactly. Prediction sets take that half too; as the gate was
    chosen on it, their coverage is exact but for that one number. With the other rules all of validation does both.

    Args:
        hazardous: Which classes the veto is about; None: none.
    Raises:
        ConfigError: the recipe has no FG view or no FULL.
    """
    fg_view, bg_view = foreground(recipe.views), background(recipe.views)
    if fg_view is None or View.FULL not in recipe.views:
        raise ConfigError(f"recipe {recipe.name} has no FG view or no FULL; nothing to fuse")
    val = splits["val"]
    tune, control = val.halves() if recipe.gate.rule == "risk" else (val, val)
    source = splits[recipe.fusion.fit_on]
    seeds = 1 + max(seed for _, seed in val.logits)

    def pair(first: Member, second: Member, fallback: Member | None) -> Pair:
        return fit_pair(tune, source, first, second, fallback, recipe)

    seconds = [view for view in (bg_view, View.FULL) if view is not None]
    pairs = {
        (fg_view, second): [pair((fg_view, s), (second, s), (View.FULL, s)) for s in range(seeds)] for second in seconds
    }
    doubles = {
        view: [pair((view, s), (view, (s + 1) % seeds), None) for s in range(seeds if seeds > 2 else 1)]
        for view in (View.FULL, fg_view)
        if seeds > 1
    }
    fg_full = pairs[fg_view, View.FULL][0]
    nothing = np.zeros_like(tune.logits[fg_full.first])
    fg, _ = fg_full.evidence(tune, nothing)
    sources, metadata = recipe.prior.sources, [s.metadata for s in (splits["train"], tune)]
    train, cap = splits["train"], recipe.prior.cap
    priors = fit_metadata(train, tune, fg.belief, sources, metadata, cap)
    shuffled = fit_metadata(train, tune, fg.belief, sources, [shuffle(s) for s in (train, tune)], cap)
    policy = _policy(fg_full, control, recipe, hazardous)
    if recipe.safety.coverage is not None:
        policy = _with_sets(policy, fg_full, control, priors, recipe.safety.coverage)
    return Systems(pairs, doubles, policy, priors, shuffled)


def _policy(pair: Pair, control: Split, recipe: Recipe, hazardous: Bool[np.ndarray, " k"] | None) -> Policy:
    operator = pair.operators[pair.best if recipe.fusion.operator == "best" else recipe.fusion.operator]
    threshold = recipe.gate.threshold
    if threshold is None:
        nothing = np.zeros_like(control.logits[pair.first])
        gate = recipe.gate
        threshold = choose_threshold(
            *pair.evidence(control, nothing),
            control.found,
            control.labels,
            control.groups,
            operator,
            nothing,
            rule=gate.rule,
            epsilon=gate.epsilon,
            delta=gate.delta,
        )
    if isinstance(operator, Threshold):
        operator = Threshold(threshold)
    temperatures = dict(zip((Stage.FG, Stage.FULL), pair.temperatures, strict=True))
    veto = None if hazardous is None or not hazardous.any() else Veto(hazardous, recipe.safety.hazard_mass)
    return Policy(temperatures, operator, threshold, veto=veto)


def _with_sets(policy: Policy, pair: Pair, control: Split, priors: Priors, coverage: float) -> Policy:
    """Sets that cover with metadata and without: the larger of the two are taken."""
    logits = control.logits[pair.first], control.logits[pair.second]
    known = priors.log_prior(control.metadata)
    fitted = [
        fit_sets(policy.decide(*logits, control.found, prior).belief, control.labels, control.groups, coverage)
        for prior in (np.zeros_like(known), known)
    ]
    return replace(policy, sets=min(fitted, key=lambda sets: sets.threshold))


def shuffle(split: Split) -> list[Metadata]:
    """A split's metadata on other photographs: always the same way, and another way for each split."""
    order = np.random.default_rng(list(split.name.encode())).permutation(len(split.metadata))
    return [split.metadata[i] for i in order]


def df20_beliefs(priors: Priors, belief: LogProbs, metadata: Sequence[Metadata]) -> LogProbs:
    """Answers by the published formula. Its unsmoothed scores may be 0; one that underflows stays the least likely."""
    scores: Float64[np.ndarray, "n k"] = df20_scores(priors, np.exp(belief), metadata)
    return log_normalize(np.log(np.maximum(scores, np.finfo(np.float64).tiny)))


def fit_metadata(
    train: Split,
    val: Split,
    belief: LogProbs,
    sources: Sequence[str],
    metadata: Sequence[Sequence[Metadata]],
    cap: float | None = None,
) -> Priors:
    """Count on train, choose α and λ on validation.

    Args:
        belief: Of validation, without metadata.
        metadata: Of train and of validation; the splits' own, or shuffled.
    """
    given, held = metadata
    columns = {source: [values.get(source) for values in given] for source in sources}
    counted = replace(count_priors(train.labels, columns, belief.shape[1]), cap=cap)
    narrowed = [{source: values[source] for source in sources if source in values} for values in held]
    return fit_priors(counted, belief, narrowed, val.labels)
