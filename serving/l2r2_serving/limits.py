"""How much a caller may ask for. The numbers are part of the contract: the .proto file states them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from l2r2.errors import InputError, Overloaded

DEFAULT_TOP_K = 5
"""Candidates of an answer when none are asked for."""

MAX_TOP_K = 100
"""Candidates of an answer; more would be a table, not an answer."""

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

REQUESTS_A_WORKER = 4
"""In flight, running and waiting. Beyond a few a core only the waiting grows."""

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
    """A bounded number of requests in flight. Belongs to one event loop; not for threads.

    Attributes:
        size: How many may be in flight.
        taken: How many are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one slot, or be refused at once: a queue that grows helps nobody.

        Raises:
            Overloaded: all are taken.
        """
        if self.taken >= self.size:
            raise Overloaded(f"{self.taken} requests are in flight, the most this server takes; try again in a second")
        self.taken += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.taken -= 1
            if self.taken == 0:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until none is taken."""
        await self._idle.wait()
