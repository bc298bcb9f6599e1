"""How a figure is taken: warm up, repeat, median with the middle half."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypedDict

import numpy as np


class Figure(TypedDict):
    """Median of n repetitions, with the 25th and 75th percentile."""

    value: float
    unit: str
    n: int
    low: float
    high: float


def of(values: list[float], unit: str) -> Figure:
    """Summarise repetitions."""
    low, value, high = np.percentile(values, [25, 50, 75])
    return Figure(value=float(value), unit=unit, n=len(values), low=float(low), high=float(high))


def cpu_time(work: Callable[[], object], repeat: int, scale: float, unit: str, warm: int = 3) -> Figure:
    """CPU time of this thread, so that neighbours on the machine count little; `scale` turns seconds into the unit."""
    for _ in range(warm):
        work()
    gc.collect()
    taken = []
    for _ in range(repeat):
        start = time.thread_time_ns()
        work()
        taken.append((time.thread_time_ns() - start) * 1e-9 * scale)
    return of(taken, unit)


def wall_time(work: Callable[[], object], repeat: int, scale: float, unit: str, warm: int = 1) -> Figure:
    """Wall time, for work that uses more than this thread."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * scale)
    return of(taken, unit)
