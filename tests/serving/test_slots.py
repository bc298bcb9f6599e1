"""Slots: requests in flight, in all and of one caller."""

import asyncio
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from l2r2.bundle import Bundle
from l2r2.errors import Overloaded
from l2r2_serving.auth import Token, TokenInterceptor, Tokens, hash_of
from l2r2_serving.limits import Slots
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import ChangedBundle, GatedLocalizer, eventually, running
from tests.serving.statuses import detail, reason, refused
from tests.serving.test_auth import written
from tests.tiny import RED, encode, make_photo

PHOTO = encode(make_photo(RED))
REQUEST = pb.RecognizeRequest(image=PHOTO)


def test_slots_are_given_back_whatever_happens() -> None:
    slots = Slots(1)

    def fail_inside() -> None:
        with slots.take():
            assert slots.taken == 1
            with pytest.raises(Overloaded), slots.take():
                pass
            raise RuntimeError("inside")

    async def use() -> None:
        with pytest.raises(RuntimeError, match="inside"):
            fail_inside()
        assert slots.taken == 0
        await slots.idle()

    asyncio.run(use())


def test_one_caller_may_not_take_every_slot() -> None:
    slots = Slots(4, each=2)
    with slots.take("a"), slots.take("a"):
        with pytest.raises(Overloaded, match="2 of your requests are in flight"), slots.take("a"):
            pass
        with slots.take("b"):
            assert slots.taken == 3
    with slots.take("a"):
        assert slots.taken == 1


def test_one_caller_is_held_to_its_share_and_another_is_served(bundle: Bundle, tmp_path: Path) -> None:
    file = written(tmp_path / "tokens.toml", one=Token(sha256=hash_of("one")), other=Token(sha256=hash_of("other")))
    one, other = ((("authorization", f"Bearer {token}"),) for token in ("one", "other"))
    held = ChangedBundle(bundle, GatedLocalizer)
    interceptors = [TokenInterceptor(Tokens(file))]
    with running(held, interceptors=interceptors, max_queue=4, max_per_client=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        first = stub.Recognize.future(REQUEST, metadata=one)
        eventually(lambda: place.server.slots.taken == 1)
        for call in (stub.Recognize, lambda each, **more: stub.BatchRecognize(batch_of(each), **more)):
            code, status = refused(lambda call=call: call(REQUEST, metadata=one))
            assert (code, reason(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert status.message.startswith("1 of your requests are in flight, the most one caller may have")
            assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1
        second = stub.Recognize.future(REQUEST, metadata=other)
        eventually(lambda: place.server.slots.taken == 2)
        held.localizer.gate.set()
        assert [call.result().candidates[0].name for call in (first, second)] == ["red", "red"]


def batch_of(*requests: pb.RecognizeRequest) -> pb.BatchRecognizeRequest:
    return pb.BatchRecognizeRequest(requests=requests)


def test_who_waits_for_a_slot_is_served_in_order() -> None:
    slots, order = Slots(1), []

    async def work(name: str) -> None:
        async with slots.wait():
            assert slots.taken == 1
            order.append(name)
            await asyncio.sleep(0)

    async def use() -> None:
        with slots.take():
            tasks = [asyncio.create_task(work(name)) for name in "abcd"]
            await asyncio.sleep(0)
            tasks[1].cancel()
            await asyncio.sleep(0)
            assert order == []
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.taken == 0

    asyncio.run(use())
    assert order == ["a", "c", "d"]


def test_a_waiter_that_its_own_limit_holds_back_does_not_block_the_next() -> None:
    slots, order = Slots(2, each=1), []

    async def work(name: str) -> None:
        async with slots.wait(name):
            order.append(name)

    async def use() -> None:
        with slots.take("a"):
            waiting = asyncio.create_task(work("a"))
            await asyncio.sleep(0)
            await work("b")
            assert order == ["b"]
        await waiting

    asyncio.run(use())
    assert order == ["b", "a"]
