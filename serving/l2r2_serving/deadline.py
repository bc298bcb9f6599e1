"""A caller's deadline as a budget: work that nobody waits for any more is not begun, and FULL only where it fits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from l2r2.errors import DeadlinePassed
from l2r2.types import Stage

GAIN, DEVIATIONS = 1 / 8, 4
"""Of a new measurement; and how many mean deviations above the mean are allowed for. Source: Jacobson 1988, as TCP
estimates a round trip."""


class Costs:
    """What each classifier costs here, learnt from what it took. Threads may share it: a lost update is no harm."""

    def __init__(self) -> None:
        self._mean: dict[Stage, float] = {}
        self._deviation: dict[Stage, float] = {}

    def learn(self, latency_ms: Mapping[str, float]) -> None:
        """Take a prediction's latencies into account; a stage that did not run says nothing."""
        for stage in Stage:
            took = sum(ms for step, ms in latency_ms.items() if step.endswith(f" {stage}")) / 1000
            if not took:
                continue
            mean = self._mean.get(stage)
            if mean is None:
                self._mean[stage], self._deviation[stage] = took, took / 2
            else:
                self._deviation[stage] += GAIN * (abs(took - mean) - self._deviation[stage])
                self._mean[stage] = mean + GAIN * (took - mean)

    def expected_s(self, stage: Stage) -> float:
        """Seconds that are rarely exceeded; 0 while nothing is known."""
        return self._mean.get(stage, 0.0) + DEVIATIONS * self._deviation.get(stage, 0.0)


class Deadline:
    """Until when a caller waits.

    Attributes:
        at: Of `time.monotonic`; infinite: for ever.
        gone: Set by whoever learns that the caller has hung up.
    """

    def __init__(self, at: float | None = None) -> None:
        self.at = math.inf if at is None else at
        self.gone = False

    def require(self) -> None:
        """Raise DeadlinePassed when nobody waits for the answer any more."""
        if self.gone:
            raise DeadlinePassed("the caller has hung up; what was left to do was not done")
        if time.monotonic() >= self.at:
            raise DeadlinePassed("the deadline passed before the answer was ready; give more time")

    def left_s(self) -> float:
        """Seconds; infinite where the caller waits for ever, negative when it is too late."""
        return self.at - time.monotonic()


class Allowance:
    """A deadline and what things cost. Fulfils `Budget`."""

    def __init__(self, deadline: Deadline, costs: Costs) -> None:
        self._deadline, self._costs = deadline, costs

    def require(self) -> None:
        """As `Deadline.require`."""
        self._deadline.require()

    def affords(self, stage: Stage) -> bool:
        """Whether that classifier still fits before the deadline."""
        return self._costs.expected_s(stage) <= self._deadline.left_s()
