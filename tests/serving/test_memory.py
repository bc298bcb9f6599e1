"""What streams were answered is remembered, of each caller apart, within bounds; what only waits is not."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from l2r2_serving.memory import ENTRY_BYTES, Begun, Memory
from l2r2_serving.status import FieldError
from l2r2_serving.v1 import recognition_pb2 as pb

SESSION = "0123456789abcdef"


def item(name: str, colour: str = "red") -> pb.StreamRecognizeRequest:
    return pb.StreamRecognizeRequest(id=name, session=SESSION, request=pb.RecognizeRequest(image=colour.encode()))


def remembered(*turns: Sequence[object], seconds: float = 60.0, most_bytes: int = 2**20) -> list[tuple[bool, int]]:
    """(replayed, works so far) after each turn (caller, id, colour)."""
    works = 0

    async def work(begun: Begun) -> pb.RecognizeResponse:
        nonlocal works
        begun()
        works += 1
        return pb.RecognizeResponse(candidates=[pb.Candidate(name="x" * 100)])

    async def use() -> list[tuple[bool, int]]:
        memory, seen = Memory(seconds, most_bytes), []
        for caller, name, colour in turns:
            response = await memory.answer(caller, item(name, colour), work, lambda: None)
            await asyncio.sleep(0)
            seen.append((response.replayed, works))
        assert memory.size <= most_bytes
        return seen

    return asyncio.run(use())


def test_memory_is_of_one_caller() -> None:
    assert remembered(("a", "1", "red"), ("b", "1", "red"), ("a", "1", "red")) == [(False, 1), (False, 2), (True, 2)]


def test_memory_forgets_the_oldest_when_it_is_full() -> None:
    turns = [("a", str(n), "red") for n in (1, 2, 3, 1, 3)]
    seen = remembered(*turns, most_bytes=2 * ENTRY_BYTES + 300)
    assert seen == [
        (False, 1),
        (False, 2),
        (False, 3),
        (False, 4),
        (True, 4),
    ]


def test_memory_forgets_what_is_old() -> None:
    assert remembered(("a", "1", "red"), ("a", "1", "red"), seconds=0.0) == [(False, 1), (False, 2)]


@dataclass
class Held:
    """Work that begins and ends when it is told to."""

    memory: Memory
    works: int = 0
    begun: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, begun: Begun) -> pb.RecognizeResponse:
        await self.room.wait()
        begun()
        self.works += 1
        await self.done.wait()
        return pb.RecognizeResponse()

    def told(self) -> None:
        self.begun += 1

    async def asked(self) -> asyncio.Task[pb.StreamRecognizeResponse]:
        task = asyncio.create_task(self.memory.answer("a", item("1"), self.work, self.told))
        await turns()
        return task


async def turns() -> None:
    """Everything that can go on does."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_waits_is_dropped_with_its_last_caller() -> None:
    async def use() -> None:
        held = Held(Memory())
        first, second = await held.asked(), await held.asked()
        first.cancel()
        await turns()
        held.room.set()
        held.done.set()
        assert not (await second).replayed  # it still waited with somebody
        assert held.works == 1

        held = Held(Memory())
        first = await held.asked()
        first.cancel()
        second = await held.asked()  # at once: nothing of the first is left
        await turns()
        second.cancel()
        await turns()
        held.room.set()
        await held.memory.settled()
        assert held.works == 0
        held.done.set()
        assert not (await (await held.asked())).replayed
        assert held.works == 1

    asyncio.run(use())


def test_what_has_begun_goes_on_without_its_caller() -> None:
    async def use() -> None:
        held = Held(Memory())
        held.room.set()
        (await held.asked()).cancel()
        assert held.begun == 1
        await turns()
        (await held.asked()).cancel()
        assert held.begun == 2  # joined, and told at once
        await turns()
        held.done.set()
        await held.memory.settled()
        assert (await (await held.asked())).replayed
        assert held.works == 1

    asyncio.run(use())


def test_memory_names_the_field() -> None:
    with pytest.raises(FieldError, match="id: id '1' was sent before"):
        remembered(("a", "1", "red"), ("a", "1", "green"))
