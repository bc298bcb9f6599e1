"""Streams whose caller may lose its rights while they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from l2r2.errors import L2R2Error
from l2r2_serving.errors import Unauthenticated

LOOK_S = 1.0
"""Between two looks at whether a caller is still welcome."""

ENDED = "the token was taken away or has expired; what was accepted is answered, send the rest with a good one"
"""To a stream that was begun with a token which then was good."""


class GuardedStream:
    """The context of a stream: its messages end, as if the caller had ended them, when the caller is welcome no more.

    So whoever answers them finishes what it has, and needs to know nothing of rights.

    Attributes:
        refusal: Why they were ended; None: they were not, or by the caller's own will.
    """

    def __init__(self, context: Any, check: Callable[[], object], state: Callable[[], object]) -> None:
        """Store the parts.

        Args:
            context: gRPC's.
            check: Raises an L2R2Error if the caller is welcome no more.
            state: Something cheap that is another whenever `check` may have changed its mind.
        """
        self._context, self._check, self._state = context, check, state
        self._seen = state()
        self._reading: asyncio.Timeout | None = None
        self._unwelcome: L2R2Error | None = None
        self.refusal: L2R2Error | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF: there is none, or none is taken any more."""
        if self._unwelcome is None:
            try:
                async with asyncio.timeout(None) as self._reading:
                    return await self._context.read()
            except TimeoutError:
                pass
            finally:
                self._reading = None
        self.refusal = self._unwelcome
        return grpc.aio.EOF

    async def messages(self) -> AsyncIterator[Any]:
        """All of them."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look every LOOK_S, whether messages come or not."""
        self._plan()
        try:
            yield
        finally:
            self._next.cancel()

    def _plan(self) -> None:
        self._next = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._plan()
        state = self._state()
        if self._unwelcome is not None or state == self._seen:
            return
        self._seen = state
        try:
            self._check()
        except L2R2Error as error:
            self._unwelcome = Unauthenticated(ENDED) if isinstance(error, Unauthenticated) else error
            if self._reading is not None:
                self._reading.reschedule(asyncio.get_running_loop().time())
