"""What streams have been answered, so that a queue sent again after a broken connection costs nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from l2r2.errors import InputError
from l2r2_serving.status import FieldError, status_of
from l2r2_serving.v1 import recognition_pb2 as pb

MEMORY_S = 600.0
"""How long an answer is kept: a phone's way through a tunnel, with patience."""

MEMORY_MB = 64
"""MiB of answers kept in all; an answer has some kilobytes, so some ten thousand."""

PASSING = frozenset({1, 4, 8, 10, 13, 14})
"""Codes that another try may not meet: CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL,
UNAVAILABLE. Such an end is forgotten."""

Work = Callable[[], Awaitable[pb.RecognizeResponse]]


Key = tuple[str, str, str]
"""Caller, session and id."""


@dataclass(slots=True)
class _Entry:
    """An item that is worked on or was answered."""

    digest: bytes
    task: asyncio.Task[pb.StreamRecognizeResponse]
    began: float
    size: int = 0


class Memory:
    """Answers by caller, session and id. Belongs to one event loop.

    Attributes:
        size: Bytes of the answers kept.
    """

    def __init__(self, seconds: float = MEMORY_S, most_bytes: int = MEMORY_MB * 2**20) -> None:
        self._seconds, self._most = seconds, most_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self.size = 0

    async def answer(self, caller: str, item: pb.StreamRecognizeRequest, work: Work) -> pb.StreamRecognizeResponse:
        """The item's result: remembered, joined, or worked out now. Work once begun goes on without its caller.

        Args:
            caller: Who asks; one cannot see another's session.
            item: With a session.
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
        replayed = entry is not None and entry.task.done()
        if entry is None:
            task = asyncio.create_task(outcome(item.id, work))
            entry = self._entries[key] = _Entry(digest, task, time.monotonic())
            task.add_done_callback(lambda _task: self._keep(key))
        response = await asyncio.shield(entry.task)
        if not replayed:
            return response
        again = pb.StreamRecognizeResponse(replayed=True)
        again.MergeFrom(response)
        return again

    async def settled(self) -> None:
        """Wait for all that is being worked on."""
        await asyncio.gather(*(entry.task for entry in self._entries.values()), return_exceptions=True)

    def _keep(self, key: Key) -> None:
        entry = self._entries[key]
        failed = entry.task.cancelled() or entry.task.exception() is not None
        if failed or (entry.task.result().HasField("status") and entry.task.result().status.code in PASSING):
            del self._entries[key]
            return
        entry.size = entry.task.result().ByteSize()
        self.size += entry.size
        self._forget()

    def _forget(self) -> None:
        """What is too old, and the oldest while all is too much; never what is still worked on."""
        old = time.monotonic() - self._seconds
        for key, entry in list(self._entries.items()):
            if entry.began >= old and self.size <= self._most:
                break
            if entry.size:
                self.size -= entry.size
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
