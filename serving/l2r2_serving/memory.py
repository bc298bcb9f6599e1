"""What streams have been answered, so that a queue sent again after a broken connection costs nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from l2r2.errors import InputError
from l2r2_serving.status import FieldError, status_of
from l2r2_serving.v1 import recognition_pb2 as pb

MEMORY_S = 600.0
"""How long an answer is kept: a phone's way through a tunnel, with patience."""

MEMORY_MB = 64
"""MiB of answers kept in all; one takes some kilobytes, so some ten thousand."""

ENTRY_BYTES = 2048
"""That an answer takes beside its bytes on the wire: keys, digest, the message's own parts. Measured: 2.2 KB."""

PASSING = frozenset({1, 4, 8, 10, 13, 14})
"""Codes that another try may not meet: CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL,
UNAVAILABLE. Such an end is forgotten."""

Work = Callable[[], Awaitable[pb.RecognizeResponse]]

Begun = Callable[[], None]
"""To be called when work has what it waited for and begins."""

Key = tuple[str, str, str]
"""Caller, session and id."""


@dataclass(slots=True)
class _Entry:
    """An item that waits, is worked on or was answered: it has either a task or a response."""

    digest: bytes
    came: float
    task: asyncio.Task[pb.StreamRecognizeResponse] | None = None
    response: pb.StreamRecognizeResponse | None = None
    callers: int = 0
    begun: bool = False
    told: list[Begun] = field(default_factory=list)
    size: int = 0

    def begin(self) -> None:
        self.begun = True
        while self.told:
            self.told.pop()()


class Memory:
    """Answers by caller, session and id. Belongs to one event loop.

    Attributes:
        size: Bytes of the answers kept.
    """

    def __init__(self, seconds: float = MEMORY_S, most_bytes: int = MEMORY_MB * 2**20) -> None:
        self._seconds, self._most = seconds, most_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self.size = 0

    async def answer(
        self,
        caller: str,
        item: pb.StreamRecognizeRequest,
        work: Callable[[Begun], Awaitable[pb.RecognizeResponse]],
        begun: Begun,
    ) -> pb.StreamRecognizeResponse:
        """The item's result: remembered, joined, or worked out now.

        Work once begun goes on without its caller, who comes back for it; what still waits is dropped with its last
        caller, so that streams which come and go leave no queue behind.

        Args:
            caller: Who asks; one cannot see another's session.
            item: With a session.
            work: Says when it waits no more and begins.
            begun: Told so, at once if it has begun for somebody else.
        Raises:
            FieldError: the id was used for another photograph.
        """
        self._forget()
        key = caller, item.session, item.id
        digest = hashlib.sha256(item.request.SerializeToString(deterministic=True)).digest()
        entry = self._entries.get(key)
        if entry is not None and entry.digest != digest:
            raise FieldError(
                "id", InputError(f"id {item.id!r} was sent before with another request; expected a new id")
            )
        if entry is not None and entry.response is not None:
            again = pb.StreamRecognizeResponse(replayed=True)
            again.MergeFrom(entry.response)
            return again
        if entry is None:
            entry = self._entries[key] = _Entry(digest, time.monotonic())
            entry.task = asyncio.create_task(self._work(key, entry, lambda: work(entry.begin)))
        task = entry.task
        assert task is not None
        entry.callers += 1
        entry.told.append(begun)
        if entry.begun:
            entry.begin()
        try:
            return await asyncio.shield(task)
        finally:
            entry.callers -= 1
            if not (entry.callers or entry.begun or task.done()):
                del self._entries[key]
                task.cancel()

    async def settled(self) -> None:
        """Wait for all that is being worked on."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, key: Key, entry: _Entry, work: Work) -> pb.StreamRecognizeResponse:
        response = None
        try:
            response = await outcome(key[2], work)
        finally:
            entry.task = None
            if response is None or (response.HasField("status") and response.status.code in PASSING):
                if self._entries.get(key) is entry:
                    del self._entries[key]
            else:
                entry.response, entry.size = response, response.ByteSize() + ENTRY_BYTES
                self.size += entry.size
                self._forget()
        return response

    def _forget(self) -> None:
        """What is too old, and the oldest while all is too much; never what is still worked on."""
        old = time.monotonic() - self._seconds
        gone = []
        for key, entry in self._entries.items():
            if entry.came >= old and self.size <= self._most:
                break
            if entry.response is not None:
                self.size -= entry.size
                gone.append(key)
        for key in gone:
            del self._entries[key]


async def outcome(name: str, work: Work) -> pb.StreamRecognizeResponse:
    """A response, or the status of why there is none."""
    try:
        return pb.StreamRecognizeResponse(id=name, response=await work())
    except Exception as error:  # noqa: BLE001  an edge: the other items must be answered
        return pb.StreamRecognizeResponse(id=name, status=item_status(error))


def item_status(error: Exception) -> pb.ItemStatus:
    """An error as the message that a batch or a stream carries."""
    return pb.ItemStatus.FromString(status_of(error).SerializeToString())
