"""Which layers break in a lower precision: found by trying, and kept in FP32; as few and as cheap as will do."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from l2r2.errors import ArtifactError, BackendError, ExportError, ParityError
from l2r2_export.precision_parity import Figures, Limits
from l2r2_export.quantize import Quantizer

MAX_EVALUATIONS = 80
"""Files written and run in one search."""

MIN_EVALUATIONS = 12
"""Even where each takes long: fewer find nothing."""

MAX_SECONDS = 120.0
"""What a search may take, judged by its first evaluation; a slow model's layers are then tried in longer runs."""

GROWTH = 3
"""Each beginning of the order is a third longer than the one before. The gate counts photographs and so is rough: with
longer steps a short beginning that passes is easily stepped over."""


class Trial(Protocol):
    """How a quantized file is judged."""

    def damage(self, file: Path) -> float:
        """How far its outputs are from FP32's, at least 0; compared between files only. On calibration photographs."""
        ...

    def figures(self, file: Path) -> Figures:
        """What the gate looks at. On validation photographs."""
        ...

    @property
    def limits(self) -> Limits:
        """The gate."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of a search.

    Attributes:
        what: "all" in INT8; these layers "alone" in INT8; these "kept" in floating point; fewer kept after a "release".
        layers: Of one's own kind only for "alone": what was quantized; else what was kept.
        damage: For "alone".
        figures: For the others; empty where the file did not run.
        passed: The gate's answer; None for "alone".
    """

    what: Literal["all", "alone", "kept", "release"]
    layers: tuple[str, ...]
    damage: float | None = None
    figures: Figures = field(default_factory=dict)
    passed: bool | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        kept: Layers in floating point, in the order in which they compute.
        quantized_share: Of the multiplications, that run in INT8, [0, 1].
        figures: Of the file that was written.
        steps: In order.
    """

    kept: tuple[str, ...]
    quantized_share: float
    figures: Figures
    steps: tuple[Step, ...]


def search(
    quantizer: Quantizer,
    out: Path,
    trial: Trial,
    max_evaluations: int = MAX_EVALUATIONS,
    max_seconds: float = MAX_SECONDS,
) -> Search:
    """Quantize as much as the gate allows, and write that.

    1. All layers. Where that passes, nothing else is tried.
    2. Each layer alone in INT8; neighbours together where there are more layers than evaluations. The damage a layer
       does, over what it costs to keep it (its share of the multiplications, and as much again for changing precision
       twice as an average layer has), gives the order.
    3. The shortest beginning of that order that passes when kept: 1, 2, 3, 4, 5, 6, 8, 10, … and halving between.
    4. Each kept layer, least damaging first, is tried in INT8 again while evaluations are left.

    The gate is asked a few times on the photographs that it certifies, which flatters it a little, as choosing a
    threshold there does; the order is made on others.

    Args:
        out: Written once, in the end.
        max_evaluations: At least 2.
        max_seconds: Makes evaluations fewer, never below `MIN_EVALUATIONS`.
    Raises:
        ParityError: no layer is left, or no evaluation; the message has the figures. Nothing was written.
        ExportError, ArtifactError: as `Quantizer.write`.
    """
    if max_evaluations < 2:
        raise ExportError(f"max_evaluations is {max_evaluations}; expected at least 2")
    with tempfile.TemporaryDirectory() as folder:
        looking = _Looking(quantizer, trial, Path(folder) / f"trial{out.suffix}", max_evaluations, max_seconds)
        kept = looking.kept()
    quantizer.write(out, kept)
    names = [name for name in quantizer.layers if name in kept]
    total = sum(quantizer.layers.values())
    return Search(
        kept=tuple(names),
        quantized_share=1.0 - sum(quantizer.layers[name] for name in names) / total if total else 0.0,
        figures=next(step.figures for step in reversed(looking.steps) if step.passed and set(step.layers) == kept),
        steps=tuple(looking.steps),
    )


class _Looking:
    """One search under way."""

    def __init__(
        self, quantizer: Quantizer, trial: Trial, file: Path, max_evaluations: int, max_seconds: float
    ) -> None:
        self._quantizer, self._trial, self._file, self._left = quantizer, trial, file, max_evaluations
        self._max_seconds = max_seconds
        self.steps: list[Step] = []

    def kept(self) -> set[str]:
        """The layers to keep."""
        began = time.monotonic()
        if self._passes("all", set()):
            return set()
        affordable = int(self._max_seconds / max(time.monotonic() - began, 1e-3))
        self._left = min(self._left, max(affordable, MIN_EVALUATIONS - 1))
        order = self._order()
        low, high = 0, 1  # the first `low` are too few
        while not self._passes("kept", _union(order[:high])):
            if high == len(order):
                self._give_up("no layer is left")
            low, high = high, min(high + max(high // GROWTH, 1), len(order))
        while high - low > 1 and self._left:
            middle = (low + high) // 2
            low, high = (low, middle) if self._passes("kept", _union(order[:middle])) else (middle, high)
        kept = _union(order[:high])
        for name in [name for unit in reversed(order[:high]) for name in unit]:
            if self._left and len(kept) > 1 and self._passes("release", kept - {name}):
                kept -= {name}
        return kept

    def _order(self) -> list[tuple[str, ...]]:
        """Layers, or runs of them, what is best kept first."""
        layers = self._quantizer.layers
        later = 2 * math.ceil(math.log2(len(layers) + 1)) + 2
        units = _runs(list(layers), max(self._left - later, min(self._left // 2, len(layers)), 1))
        total = sum(layers.values()) or 1.0
        worth = {}
        for unit in units:
            if not self._left:
                self._give_up("no evaluation is left")
            share = sum(layers[name] for name in unit) / total
            worth[unit] = self._damage(unit) / (share + len(unit) / len(layers))
        return sorted(units, key=lambda unit: -worth[unit])

    def _damage(self, unit: tuple[str, ...]) -> float:
        self._left -= 1
        self._quantizer.write(self._file, set(self._quantizer.layers) - set(unit))
        try:
            damage = self._trial.damage(self._file)
        except (ArtifactError, BackendError):  # it breaks outright
            damage = math.inf
        damage = math.inf if math.isnan(damage) else damage
        self.steps.append(Step("alone", unit, damage=damage))
        return damage

    def _passes(self, what: Literal["all", "kept", "release"], keep: set[str]) -> bool:
        if not self._left:
            self._give_up("no evaluation is left")
        self._left -= 1
        self._quantizer.write(self._file, keep)
        try:
            figures = self._trial.figures(self._file)
        except (ArtifactError, BackendError, ParityError):  # it does not load, or is not finite: no figure is
            figures = {}
        passed = not self._trial.limits.broken(figures)
        names = tuple(name for name in self._quantizer.layers if name in keep)
        self.steps.append(Step(what, names, figures=figures, passed=passed))
        return passed

    def _give_up(self, why: str) -> None:
        last = next((step for step in reversed(self.steps) if step.passed is not None), None)
        figures = {} if last is None else last.figures
        seen = ", ".join(f"{name} {value:.3g}" for name, value in figures.items()) or "none, it did not run"
        broken = "; ".join(self._trial.limits.broken(figures))
        raise ParityError(
            f"stays outside its tolerance and {why} after {len(self.steps)} evaluations; expected "
            f"{broken} (last figures: {seen}). Nothing was written; choose a higher precision"
        )


def _runs(names: list[str], most: int) -> list[tuple[str, ...]]:
    """At most `most` runs of neighbours of nearly one length."""
    return [tuple(part) for part in np.array_split(np.array(names, dtype=object), min(most, len(names)))]


def _union(units: Sequence[tuple[str, ...]]) -> set[str]:
    return {name for unit in units for name in unit}


def log_of(steps: Sequence[Step]) -> tuple[Mapping[str, object], ...]:
    """The steps as JSON can hold them, for the run's artifacts; a number that is not finite is text."""
    return tuple(
        {
            "what": step.what,
            "layers": list(step.layers),
            "damage": None if step.damage is None else _plain(step.damage),
            "figures": {name: _plain(value) for name, value in step.figures.items()},
            "passed": step.passed,
        }
        for step in steps
    )


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)
