"""Calls of several threads joined into one inference, for devices on which a batch costs little more than one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np

from l2r2.runtimes.sessions import RuntimeSession

Tensors = Mapping[str, np.ndarray]

Ran: TypeAlias = Callable[[str, int], None]
"""Told of each inference its stage and how many photographs it had, in whichever thread ran it; may not raise."""


class BatchingSession:
    """A session whose concurrent calls run together. Fulfils `RuntimeSession`.

    Nobody waits for a batch to fill: while the device is busy calls gather, and whoever finds it free runs what has
    gathered. One caller alone is as quick as without; the busier the device, the larger the batches.
    """

    def __init__(self, session: RuntimeSession, largest: int, ran: Callable[[int], None] | None = None) -> None:
        """Store the parts.

        Args:
            session: Takes any number up to `largest` along the first axis of each tensor.
            largest: Photographs of one inference, at least 1; a call with more runs alone, as it is.
            ran: As `Ran`, of this stage.
        """
        self._session, self._largest, self._ran = session, largest, ran
        self._gathered: deque[tuple[Tensors, Future[Tensors]]] = deque()
        self._gathering, self._running = threading.Lock(), threading.Lock()

    @property
    def inputs(self) -> Mapping[str, Sequence[int | str]]:
        """As the session's."""
        return self._session.inputs

    @property
    def outputs(self) -> Sequence[str]:
        """As the session's."""
        return self._session.outputs

    def infer(self, feed: Tensors) -> Tensors:
        """As the session's; an error of a batch is raised by each of its calls."""
        mine: Future[Tensors] = Future()
        with self._gathering:
            self._gathered.append((feed, mine))
        while not mine.done():
            with self._running:  # whoever is first runs for all that have gathered, perhaps for this call too
                if not mine.done():
                    self._run(self._next())
        return mine.result()

    def _next(self) -> list[tuple[Tensors, Future[Tensors]]]:
        """The calls that have waited longest and fit together."""
        with self._gathering:
            together = [self._gathered.popleft()]
            left, form = self._largest - _count(together[0][0]), _form(together[0][0])
            while self._gathered and _count(self._gathered[0][0]) <= left and _form(self._gathered[0][0]) == form:
                left -= _count(self._gathered[0][0])
                together.append(self._gathered.popleft())
            return together

    def _run(self, together: Sequence[tuple[Tensors, Future[Tensors]]]) -> None:
        feeds = [feed for feed, _ in together]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        try:
            given = self._session.infer(joined if len(feeds) > 1 else feeds[0])
        except BaseException as error:  # noqa: BLE001  it is each caller's own
            for _, future in together:
                future.set_exception(error)
            return
        if self._ran is not None:
            self._ran(sum(map(_count, feeds)))
        start = 0
        for feed, future in together:
            end = start + _count(feed)
            future.set_result({name: values[start:end] for name, values in given.items()})
            start = end


def _count(feed: Tensors) -> int:
    """Photographs of a call."""
    return len(next(iter(feed.values())))


def _form(feed: Tensors) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """What must be equal for two calls to run together."""
    return {name: (values.dtype, values.shape[1:]) for name, values in feed.items()}
