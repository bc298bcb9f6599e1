"""How much a caller may ask for. The numbers are part of the contract: the .proto file states them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from l2r2.errors import InputError, Overloaded

DEFAULT_TOP_K = 5
"""Candidates of an answer when none are asked for."""

MAX_TOP_K = 100
"""Candidates of an answer; more would be a table, not an answer."""

MAX_DETECTIONS = 16
"""Answers to one photograph; what a localizer tells apart."""

THUMBNAIL_PX = (32, 512)
"""Least and largest longest side of a region's thumbnail: enough to look at, a few ten kilobytes."""

MAX_ID_CHARS = 128
"""Of a stream's session and of an item's id."""

MIN_SESSION_CHARS = 16
"""A session's name is its key to its answers; so it may not be guessed."""

MAX_BATCH = 64
"""Requests of a batch; what a phone gathers in an outing, and seconds of work rather than minutes."""

MAX_SOURCES = 32
"""Metadata of a request beside habitat, substrate and month."""

MAX_NAME_CHARS = 64
"""Of a metadata source's name."""

MAX_VALUE_CHARS = 256
"""Of a metadata value; it may be echoed."""

MAX_MESSAGE_MB = 32
"""MiB of a message, either way; gRPC's own 4 MiB is less than a photograph. Source: a 50 MP phone JPEG."""

REQUESTS_A_WORKER = 8
"""In flight, running and waiting: a worker is never without work, and nobody waits for more than eight photographs."""

RETRY_AFTER_S = 1.0
"""What an overloaded server asks a caller to wait; a few photographs' time."""


def check_top_k(top_k: int) -> int:
    """Give the candidates wanted back.

    Raises:
        InputError: fewer than 1 or more than `MAX_TOP_K`.
    """
    if not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"top_k is {top_k}; expected 1 to {MAX_TOP_K} candidates")
    return top_k


class Slots:
    """A bounded number of requests in flight, in all and of one caller. Belongs to one event loop; not for threads.

    Attributes:
        size: How many may be in flight.
        each: How many of one caller.
        taken: How many are.
    """

    def __init__(self, size: int, each: int | None = None) -> None:
        self.size = size
        self.each = size if each is None else each
        self.taken = 0
        self._of: Counter[str] = Counter()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()

    def overload(self) -> Overloaded | None:
        """Why nobody gets one now; None: there are some."""
        if self.taken < self.size:
            return None
        return Overloaded(f"{self.taken} requests are in flight, the most this server takes; try again in a second")

    @contextmanager
    def take(self, caller: str = "") -> Iterator[None]:
        """Hold one slot, or be refused at once: a queue that grows helps nobody.

        Args:
            caller: Whose request it is.
        Raises:
            Overloaded: all are taken, or all that one caller may have.
        """
        if (error := self.overload()) is not None:
            raise error
        if self._of[caller] >= self.each:
            raise Overloaded(
                f"{self.each} of your requests are in flight, the most one caller may have; wait for their answers"
            )
        with self._held(caller):
            yield

    @asynccontextmanager
    async def wait(self, caller: str = "") -> AsyncIterator[None]:
        """Hold one slot as soon as there is one, first come first served. For a caller that is held back otherwise."""
        while self.taken >= self.size or self._of[caller] >= self.each:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # woken and cancelled at once: the next one's turn
                    self._wake()
                raise
        with self._held(caller):
            yield

    async def idle(self) -> None:
        """Wait until none is taken."""
        await self._idle.wait()

    @contextmanager
    def _held(self, caller: str) -> Iterator[None]:
        self.taken += 1
        self._of[caller] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.taken -= 1
            self._of[caller] -= 1
            if not self._of[caller]:
                del self._of[caller]
            if self.taken == 0:
                self._idle.set()
            self._wake()

    def _wake(self) -> None:
        """All who wait look again, in order: the first may still be held back by its own limit."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
