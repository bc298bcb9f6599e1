"""Calls for which there is no room: refused before their message is read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from l2r2.errors import Overloaded
from l2r2_serving.callers import caller_of, host_of
from l2r2_serving.calls import Calls
from l2r2_serving.limits import Slots
from l2r2_serving.reading import OPEN, Answering, abort, behind

CHECKS, CHECKS_EACH = 64, 8
"""Health checks at once, in all and of one host: each may have a message of full size on its way, and nobody is asked
who they are."""

WATCHERS, WATCHERS_EACH = 64, 8
"""Health watchers, in all and of one host. Each stays; whoever is refused takes the server for healthy."""


class Room:
    """A bounded number of open calls, from their first byte to their last. Belongs to one event loop.

    Attributes:
        size: How many there may be.
        each: How many of one caller.
        open: How many there are.
    """

    def __init__(self, size: int, each: int) -> None:
        self.size, self.each = size, each
        self.open = 0
        self._of: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    def refusal(self, caller: str) -> Overloaded | None:
        """Why a caller may not open another now; None: it may."""
        if self.open >= self.size:
            return Overloaded(f"{self.size} calls are open, the most this server keeps; try again in a second")
        if self._of[caller] >= self.each:
            return Overloaded(f"{self.each} of your calls are open, the most one caller may have; end some of them")
        return None

    @contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Keep a call open, which `refusal` allows."""
        self.open += 1
        self._of[caller] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.open -= 1
            self._of[caller] -= 1
            if not self._of[caller]:
                del self._of[caller]
            if not self.open:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until none is open."""
        await self._idle.wait()


class Rooms:
    """What may be open at once: health checks, health watchers, and all other calls, each apart.

    Attributes:
        calls: Room for all but health.
    """

    def __init__(self, calls: int) -> None:
        """Make room.

        Args:
            calls: How many may be open; one caller may have three quarters of them.
        """
        self.calls = Room(calls, 3 * calls // 4)
        self._checks, self._watchers = Room(CHECKS, CHECKS_EACH), Room(WATCHERS, WATCHERS_EACH)

    @property
    def size(self) -> int:
        """Calls in all."""
        return self.calls.size + self._checks.size + self._watchers.size

    def bounded(self, method: str, answer: Answering, calls: Calls | None = None) -> Answering:
        """A method that is called only while there is room.

        Args:
            method: As on the wire, /SERVICE/METHOD.
            calls: What its calls belong to.
        """
        name = method.rpartition("/")[2]
        if not method.startswith(OPEN):
            room, who = self.calls, caller_of
        else:
            room, who = self._watchers if name == "Watch" else self._checks, _host

        async def answering(messages: Any, context: Any) -> Any:
            caller = who(context)
            error = room.refusal(caller)
            if error is None:
                with room.hold(caller):
                    return await answer(messages, context)
            if calls is not None:
                await _refusing(calls, name, error)(messages, context)
            elif room is self._watchers:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "enough watch already; ask Check, again and again")
            else:
                await abort(context, error)
            return None

        return answering


class SheddingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses what would find every slot taken, as its method would, so that a flood is neither read nor kept.

    At ten times the load of two cores a server answers 4 % more photographs than one that reads first. And it bounds
    what may be open: streams that say nothing, messages that never end, and health calls, apart from all others.
    """

    def __init__(self, slots: Slots, rooms: Rooms, services: Mapping[str, Calls], taking: frozenset[str]) -> None:
        """Store the parts.

        Args:
            services: By name, what the calls of each belong to.
            taking: Methods that take a slot for their one message, "/SERVICE/METHOD".
        """
        self._slots, self._rooms, self._services, self._taking = slots, rooms, services, taking
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """As gRPC calls it."""
        method = handler_call_details.method
        service, _, name = method.removeprefix("/").partition("/")
        calls, error = self._services.get(service), self._slots.overload()
        if calls is not None and error is not None and method in self._taking:
            return grpc.stream_stream_rpc_method_handler(_refusing(calls, name, error))
        if method not in self._handlers:
            handler: Any = await continuation(handler_call_details)
            if handler is None:
                return None
            self._handlers[method] = behind(lambda answer: self._rooms.bounded(method, answer, calls), handler)
        return self._handlers[method]


def _host(context: Any) -> str:
    return host_of(context.peer())


def _refusing(calls: Calls, method: str, error: Overloaded) -> Answering:
    """Ends a call at once; as one of streams it waits for no message."""

    async def refuse(_messages: Any, context: Any) -> None:
        async with calls.answering(method, context):
            raise error

    return refuse
