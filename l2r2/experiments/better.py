"""What this project does beyond the paper, each measured against the paper's own way on the same photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32

from l2r2.cascade import Policy, Veto, choose_threshold
from l2r2.config import Recipe
from l2r2.conformal import set_figures
from l2r2.experiments.pairs import FITTED_ON_LOGITS, fit_pair
from l2r2.experiments.splits import CROSSFIT, Split
from l2r2.experiments.systems import Systems
from l2r2.fusion import Threshold
from l2r2.metrics import Interval, bootstrap
from l2r2.types import Metadata


@dataclass(frozen=True, slots=True)
class Line:
    """One figure in both ways.

    Attributes:
        what: The thing measured, with its unit; shares in [0, 1].
        gain: Ours minus the paper's, paired by photograph, where both are means over photographs.
    """

    what: str
    split: str
    paper: float | None
    ours: float
    gain: Interval | None
    n: int


def better(splits: Mapping[str, Split], recipe: Recipe, systems: Systems, hazard_mass: float) -> list[Line]:
    """Every comparison on every test set."""
    tests = [split for name, split in splits.items() if name not in {"train", "val", CROSSFIT}]
    lines: list[Line] = []
    for split in tests:
        if CROSSFIT in splits:
            lines += _crossfit(splits, split, recipe, systems)
        lines += _gates(splits["val"], split, recipe, systems)
        if systems.policy.sets is not None:
            lines += _sets(split, systems)
        lines += _hazards(split, systems, hazard_mass)
        lines += _caps(split, systems)
    return lines


def _crossfit(splits: Mapping[str, Split], split: Split, recipe: Recipe, systems: Systems) -> list[Line]:
    """FC and WL on logits of photographs that the classifiers were fitted on, or never saw."""
    pair = systems.fg_full
    ways = [
        fit_pair(splits["val"], splits[name], pair.first, pair.second, pair.fallback, recipe)
        for name in ("train", CROSSFIT)
    ]
    lines = []
    for name in FITTED_ON_LOGITS:
        paper, ours = (way.fuse(name, split).argmax(axis=1) == split.labels for way in ways)
        lines.append(_paired(f"accuracy of ⊕{name}: fitted on training logits / cross-fitted", split, paper, ours))
    return lines


def _gates(val: Split, split: Split, recipe: Recipe, systems: Systems) -> list[Line]:
    """The most accurate gate on validation; the one-standard-error gate; rule risk, here on all of validation."""
    pair = systems.fg_full
    nothing = np.zeros_like(val.logits[pair.first])
    evidence = pair.evidence(val, nothing)
    operator = systems.policy.operator
    decisions = {}
    for rule in ("best", "one_se", "risk"):
        t = choose_threshold(
            *evidence, val.found, val.labels, val.groups, operator, nothing, rule,
            recipe.gate.epsilon, recipe.gate.delta,
        )  # fmt: skip
        policy = _with_threshold(systems.policy, t)
        decisions[rule] = policy.decide(*systems.deployed(split), split.found, np.zeros_like(split.logits[pair.first]))
    right = {rule: d.belief.argmax(axis=1) == split.labels for rule, d in decisions.items()}
    lines = []
    certified = f"rule risk, ε {recipe.gate.epsilon:g}, δ {recipe.gate.delta:g}"
    for rule, name in (("one_se", "one standard error"), ("risk", certified)):
        lines.append(_paired(f"accuracy: gate most accurate on validation / {name}", split, right["best"], right[rule]))
        skipped = decisions["best"].skipped_full, decisions[rule].skipped_full
        lines.append(_paired(f"FULL skipped: gate most accurate on validation / {name}", split, *skipped))
    return lines


def _sets(split: Split, systems: Systems) -> list[Line]:
    """One guess, or one of these few."""
    sets = systems.policy.sets
    assert sets is not None
    decided = systems.policy.decide(*systems.deployed(split), split.found, _nothing(split, systems))
    found = set_figures(sets, decided.belief, split.labels, split.groups)
    right = decided.belief.argmax(axis=1) == split.labels
    members = sets.members(decided.belief)[np.arange(len(split.labels)), split.labels]
    size = found["size"]
    assert isinstance(size, float)
    return [
        _paired(f"class named: one guess / a set of {100 * sets.coverage:g} % coverage", split, right, members),
        Line("classes named: one guess / a set", split.name, 1.0, size, None, len(split.labels)),
    ]


def _hazards(split: Split, systems: Systems, mass: float) -> list[Line]:
    """Each class in turn is taken for hazardous: how often a hazardous photograph is called a harmless class."""
    prior = systems.priors.log_prior(split.metadata)
    decided = systems.policy.decide(*systems.deployed(split), split.found, prior)
    answer = decided.belief.argmax(axis=1)
    k = decided.belief.shape[1]
    wrong, still, withheld = [], [], []
    for hazard in range(k):
        veto = replace(systems.policy, veto=Veto(np.arange(k) == hazard, mass))
        silent = veto.withheld(*systems.deployed(split), split.found, answer)
        mine = split.labels == hazard
        wrong += (answer[mine] != hazard).tolist()
        still += ((answer[mine] != hazard) & ~silent[mine]).tolist()
        withheld.append(float(silent.mean()))
    order = np.concatenate([np.flatnonzero(split.labels == hazard) for hazard in range(k)])
    paper, ours = np.array(wrong), np.array(still)
    gain = bootstrap(ours.astype(float) - paper, split.groups[order])
    text = "hazardous photographs called harmless: no veto / veto (each class in turn hazardous)"
    return [
        Line(text, split.name, float(paper.mean()), float(ours.mean()), gain, len(paper)),
        Line("answers withheld: no veto / veto", split.name, 0.0, float(np.mean(withheld)), None, len(split.labels)),
    ]


def _caps(split: Split, systems: Systems) -> list[Line]:
    """The prior uncapped or capped, with each photograph's own metadata and with those of another class."""
    cap = systems.priors.cap or DEFAULT_CAP
    free, held = replace(systems.priors, cap=None), replace(systems.priors, cap=cap)
    nothing = _nothing(split, systems)
    plain = systems.policy.decide(*systems.deployed(split), split.found, nothing).belief.argmax(axis=1)
    order = np.argsort(split.labels, kind="stable")
    swapped: list[Metadata] = [{}] * len(order)
    for place, other in zip(order, np.roll(order, len(order) // 2), strict=True):
        swapped[place] = split.metadata[other]
    lines = []
    for name, metadata in (("own", split.metadata), ("another class's", swapped)):
        answers = [
            systems.policy.decide(*systems.deployed(split), split.found, priors.log_prior(metadata)).belief.argmax(
                axis=1
            )
            for priors in (free, held)
        ]
        right = [a == split.labels for a in answers]
        flips = [a != plain for a in answers]
        lines.append(_paired(f"accuracy with {name} metadata: prior uncapped / capped at {cap:g} nats", split, *right))
        lines.append(_paired(f"flipped by prior, {name} metadata: uncapped / capped", split, *flips))
    return lines


DEFAULT_CAP = 3.0
"""Nats; a factor of 20 in the odds."""


def _nothing(split: Split, systems: Systems) -> Float32[np.ndarray, "n k"]:
    return np.zeros_like(split.logits[systems.fg_full.first])


def _with_threshold(policy: Policy, t: float) -> Policy:
    operator = Threshold(t) if isinstance(policy.operator, Threshold) else policy.operator
    return replace(policy, operator=operator, threshold=t)


def _paired(what: str, split: Split, paper: Bool[np.ndarray, " n"], ours: Bool[np.ndarray, " n"]) -> Line:
    gain = bootstrap(ours.astype(float) - paper, split.groups)
    return Line(what, split.name, float(paper.mean()), float(ours.mean()), gain, len(paper))


def cells(line: Line) -> tuple[str, ...]:
    """What, set, the paper's way, ours, difference with its 95 % interval by group, n; as text, in % and points."""
    counted = line.what.startswith("classes")
    paper, ours = ("" if v is None else f"{v:.2f}" if counted else f"{100 * v:.1f}" for v in (line.paper, line.ours))
    gain = ""
    if line.gain is not None:
        gain = f"{100 * line.gain.value:+.1f} ({100 * line.gain.low:+.1f} … {100 * line.gain.high:+.1f})"
    return line.what, line.split, paper, ours, gain, str(line.n)


def markdown(lines: Sequence[Line]) -> str:
    """A table of `cells`."""
    head = [
        "The paper's way / ours, in % (classes named: a count); difference in points, 95 % paired bootstrap by group.",
        "",
        "| what | set | paper's way | ours | difference | n |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(f"| {' | '.join(cells(line))} |" for line in lines)]) + "\n"
