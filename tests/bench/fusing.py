"""What fusion and the prior cost: a data set at once, one answer of many classes, and the memory of the tables."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from l2r2.calibration import Temperature
from l2r2.cascade import Policy
from l2r2.fusion import Threshold
from l2r2.priors import Priors, SourceTable, count_priors
from l2r2.recognizer import _largest
from l2r2.types import Metadata, Stage
from tests.bench.measure import Figure, cpu_time, of


def figures() -> Iterator[tuple[str, Figure]]:
    """Name → figure."""
    yield "fusion.batch_s", _batch(photographs=10_000, classes=1_000)
    yield "fusion.answer_us", _answer(classes=10_000)
    yield "priors.table_mb", _tables(classes=100_000, values=300, entries=5_000_000)


def _policy(t: float = 0.6) -> Policy:
    ones = {stage: Temperature(np.array([1.3])) for stage in Stage}
    return Policy(ones, Threshold(t), t)


def _counted(classes: int, observations: int) -> Priors:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, observations - classes)])
    columns = {
        "habitat": [str(v) for v in rng.integers(0, 32, observations)],
        "substrate": [str(v) for v in rng.integers(0, 32, observations)],
        "month": [str(1 + v) for v in rng.integers(0, 12, observations)],
    }
    return replace(count_priors(labels, columns, classes), cap=3.0)


def _metadata(count: int) -> list[Metadata]:
    rng = np.random.default_rng(1)
    habitat, substrate, month = (rng.integers(0, values, count) for values in (32, 32, 12))
    return [
        {"habitat": str(h), "substrate": str(s), "month": str(1 + m)}
        for h, s, m in zip(habitat, substrate, month, strict=True)
    ]


def _batch(photographs: int, classes: int) -> Figure:
    """Priors, calibration, gate and ⊕R for a whole data set."""
    rng = np.random.default_rng(2)
    fg, full = (rng.normal(size=(photographs, classes)).astype(np.float32) * 3 for _ in range(2))
    policy, priors, metadata = _policy(), _counted(classes, 20 * classes), _metadata(photographs)
    found = np.ones(photographs, dtype=bool)
    return cpu_time(lambda: policy.decide(fg, full, found, priors.log_prior(metadata)), 7, 1, "s of CPU", warm=1)


def _answer(classes: int) -> Figure:
    """One photograph whose FG was unsure: prior, both beliefs, gate, ⊕R, the five likeliest classes."""
    rng = np.random.default_rng(3)
    fg, full = (rng.normal(size=(1, classes)).astype(np.float32) * 2 for _ in range(2))
    policy, priors, metadata = _policy(), _counted(classes, 20 * classes), _metadata(1)
    found = np.ones(1, dtype=bool)

    def answer() -> object:
        prior = priors.log_prior(metadata)
        first = policy.evidence(Stage.FG, fg, prior)
        assert not policy.sure(first)[0]
        belief = policy.join(first, policy.evidence(Stage.FULL, full, prior), found, prior)
        return _largest(belief[0], 5)

    return cpu_time(answer, 2000, 1e6, "µs of CPU", warm=50)


def _tables(classes: int, values: int, entries: int) -> Figure:
    """Memory of counts and log-ratios, the latest rows included, after answering with every value once."""
    rng = np.random.default_rng(4)
    taken = []
    for _ in range(3):
        tracemalloc.start()
        cells = np.unique(rng.integers(0, classes * values, entries))
        starts = np.searchsorted(cells, np.arange(values + 1) * classes)
        table = SourceTable(
            tuple(f"{i:03}" for i in range(values)),
            starts.astype(np.int64),
            (cells % classes).astype(np.int32),
            np.ones(len(cells), np.int32),
        )
        del cells
        priors = Priors(np.ones(classes, np.int64), {"habitat": table}, 1.0, 1.0, 3.0)
        for value in table.values:
            priors.log_prior([{"habitat": value}])
        taken.append(tracemalloc.get_traced_memory()[0] / 1e6)
        tracemalloc.stop()
        del priors, table
    return of(taken, "MB")
