"""A phone that was offline uploads its queue: answers as they are ready, flow control, nothing done twice."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from l2r2.bundle import Bundle
from l2r2_serving import reading
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import (
    PATIENCE_S,
    BrokenLocalizer,
    ChangedBundle,
    GatedLocalizer,
    Running,
    eventually,
    running,
)
from tests.serving.statuses import fields, reason, refused
from tests.tiny import GREEN, RED, encode, make_photo

SESSION = "0123456789abcdef"
PHOTOS = {"red": encode(make_photo(RED)), "green": encode(make_photo(GREEN))}


def item(name: str, colour: str = "red", session: str = SESSION) -> pb.StreamRecognizeRequest:
    return pb.StreamRecognizeRequest(id=name, session=session, request=pb.RecognizeRequest(image=PHOTOS[colour]))


class Uploading:
    """A call whose items are sent one by one."""

    def __init__(self, stub: object) -> None:
        self._items: queue.Queue[pb.StreamRecognizeRequest | None] = queue.Queue()
        self.read = 0
        self.call = stub.StreamRecognize(self._sent())

    def _sent(self) -> Iterator[pb.StreamRecognizeRequest]:
        while (each := self._items.get()) is not None:
            self.read += 1
            yield each

    def send(self, *items: pb.StreamRecognizeRequest) -> None:
        for each in items:
            self._items.put(each)

    def done(self) -> None:
        self._items.put(None)


def answers(call: Iterator[pb.StreamRecognizeResponse]) -> dict[str, str]:
    return {each.id: each.response.candidates[0].name for each in call}


def test_each_item_is_answered_by_its_id(served: Running) -> None:
    with served.stub() as stub:
        items = [item(str(number), ("red", "green")[number % 2], session="") for number in range(20)]
        assert answers(stub.StreamRecognize(iter(items))) == {
            str(number): ("red", "green")[number % 2] for number in range(20)
        }


def test_an_item_that_cannot_be_used_does_not_lose_the_others(served: Running) -> None:
    bad = pb.StreamRecognizeRequest(id="bad", request=pb.RecognizeRequest(image=b"text"))
    short = pb.StreamRecognizeRequest(id="short", session="guess", request=pb.RecognizeRequest(image=PHOTOS["red"]))
    empty = pb.StreamRecognizeRequest(id="empty")
    nameless = pb.StreamRecognizeRequest(request=pb.RecognizeRequest(image=PHOTOS["red"]))
    with served.stub() as stub:
        found = {each.id: each for each in stub.StreamRecognize(iter([bad, short, item("good"), empty, nameless]))}
    assert found["good"].response.candidates[0].name == "red"
    messages = {name: each.status.message for name, each in found.items() if each.HasField("status")}
    assert set(messages) == {"bad", "short", "empty", ""}
    assert messages["short"] == "session has 5 characters; expected 16 to 128"
    assert messages["empty"] == "the item has no request; expected one with a photograph"
    assert messages[""] == "id has 0 characters; expected 1 to 128"
    assert all(each.status.code == 3 for each in found.values() if each.HasField("status"))


def test_answers_come_when_they_are_ready_not_in_order(bundle: Bundle) -> None:
    with running(bundle) as place, place.stub() as stub:
        upload = Uploading(stub)
        upload.send(item("a"))
        assert next(upload.call).id == "a"  # while the call is still open
        upload.send(item("b"), item("c"))
        assert {next(upload.call).id, next(upload.call).id} == {"b", "c"}
        upload.done()
        assert list(upload.call) == []
        assert upload.call.code() is grpc.StatusCode.OK


def test_no_more_is_read_than_can_be_worked_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def counting(lenient: Callable[..., Any]) -> Callable[..., Any]:
        def counted(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
            def take(data: bytes) -> Any:
                nonlocal read
                read += 1
                return lenient(deserialize)(data)

            return take

        return counted

    monkeypatch.setattr(reading, "_lenient", counting(reading._lenient))
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        big = pb.RecognizeRequest(
            image=PHOTOS["red"] + bytes(2**20)
        )  # so that HTTP/2's own windows are small beside it
        upload = Uploading(stub)
        upload.send(*(pb.StreamRecognizeRequest(id=str(n), request=big) for n in range(80)))
        eventually(lambda: held.localizer.reached == before + 1)
        eventually(lambda: read == 2)
        threading.Event().wait(0.5)
        assert read == 2  # twice the workers
        assert upload.read < 60  # the others wait with the caller, but for some 20 that a busy machine's sockets hold
        held.localizer.gate.set()
        upload.done()
        assert len(list(upload.call)) == read == 80


def test_a_stream_does_not_shut_others_out(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=2) as place, place.stub() as stub:
        held.localizer.gate.clear()
        idle = [Uploading(stub) for _ in range(6)]  # more open streams than slots
        for upload in idle:
            upload.send(item("only", session=""))
        eventually(lambda: place.server.slots.taken == 2)
        held.localizer.gate.set()
        assert [next(upload.call).id for upload in idle] == ["only"] * 6
        assert stub.Recognize(pb.RecognizeRequest(image=PHOTOS["red"])).candidates[0].name == "red"
        for upload in idle:
            upload.done()
            assert list(upload.call) == []


def test_a_broken_connection_costs_nothing_twice(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place:
        before = held.localizer.reached
        with place.stub() as stub:
            upload = Uploading(stub)
            upload.send(item("a"))
            first = next(upload.call)
            assert not first.replayed
            held.localizer.gate.clear()
            upload.send(item("b", "green"))
            eventually(lambda: held.localizer.reached == before + 2)
        # The channel is closed: the connection is gone while b is being worked on.
        with place.stub() as stub:
            again = Uploading(stub)
            again.send(item("b", "green"), item("a"), item("c"))  # when a is answered, b was read
            replayed = next(again.call)
            assert (replayed.id, replayed.replayed) == ("a", True)
            assert replayed.response == first.response
            held.localizer.gate.set()
            rest = {each.id: each for each in (next(again.call), next(again.call))}
            assert not any(each.replayed for each in rest.values())
            assert {name: each.response.candidates[0].name for name, each in rest.items()} == {"b": "green", "c": "red"}
            again.done()
            assert list(again.call) == []
        assert held.localizer.reached == before + 3


def test_an_id_used_for_another_photograph_is_refused(served: Running) -> None:
    session = SESSION + "-other"
    with served.stub() as stub:
        assert answers(stub.StreamRecognize(iter([item("x", session=session)]))) == {"x": "red"}
        (refusal,) = stub.StreamRecognize(iter([item("x", "green", session)]))
        assert refusal.status.code == 3
        assert "was sent before with another request" in refusal.status.message
        # Without a session nothing is remembered, so nothing is another.
        assert answers(stub.StreamRecognize(iter([item("x", "green", session="")]))) == {"x": "green"}


def test_a_failure_that_may_pass_is_not_remembered(bundle: Bundle) -> None:
    broken = ChangedBundle(bundle, BrokenLocalizer)
    with running(broken) as place, place.stub() as stub:
        broken.localizer.armed = True
        (failed,) = stub.StreamRecognize(iter([item("a")]))
        assert failed.status.code == grpc.StatusCode.INTERNAL.value[0]
        broken.localizer.armed = False
        (answered,) = stub.StreamRecognize(iter([item("a")]))
        assert answered.response.candidates[0].name == "red"
        assert not answered.replayed


def test_what_left_without_a_session_is_dropped(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        upload = Uploading(stub)
        upload.send(item("a", session=""), item("b", session=""))
        eventually(lambda: held.localizer.reached == before + 1)
        eventually(lambda: place.server.slots.taken == 2)
        upload.call.cancel()
        eventually(lambda: place.server.slots.taken == 0)
        held.localizer.gate.set()
        assert stub.Recognize(pb.RecognizeRequest(image=PHOTOS["red"])).candidates[0].name == "red"
        assert held.localizer.reached == before + 2


def test_a_stop_answers_what_was_accepted_and_says_so(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        upload = Uploading(stub)
        upload.send(item("a"))
        eventually(lambda: held.localizer.reached == before + 1)
        stopping = asyncio.run_coroutine_threadsafe(place.server.stop(PATIENCE_S), place.loop)
        threading.Event().wait(0.1)
        held.localizer.gate.set()
        assert next(upload.call).response.candidates[0].name == "red"
        code, status = refused(lambda: next(upload.call))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "send what was not answered again" in status.message
        assert reason(status) == "SERVING_ERROR"
        stopping.result(PATIENCE_S)
        upload.done()


def test_before_anything_is_served_a_stream_is_refused(bundle: Bundle) -> None:
    with running(bundle, warm=False) as place, place.stub() as stub:
        code, _status = refused(lambda: list(stub.StreamRecognize(iter([item("a")]))))
        assert code is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("session", ["", SESSION])
def test_a_failure_of_ours_is_in_the_log(session: str, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    broken = ChangedBundle(bundle, BrokenLocalizer)
    with running(broken) as place, place.stub() as stub:
        broken.localizer.armed = True
        (refusal,) = stub.StreamRecognize(iter([item("a", session=session)]))
    assert refusal.status.code == grpc.StatusCode.INTERNAL.value[0]
    (record,) = caplog.records
    assert record.exc_info is not None


def test_an_unknown_bundle_is_an_items_status(served: Running) -> None:
    request = pb.RecognizeRequest(image=PHOTOS["red"], bundle="none", month=13)
    with served.stub() as stub:
        (refusal,) = stub.StreamRecognize(iter([pb.StreamRecognizeRequest(id="a", request=request)]))
        assert refusal.status.code == grpc.StatusCode.NOT_FOUND.value[0]
        request.bundle = ""
        (refusal,) = stub.StreamRecognize(iter([pb.StreamRecognizeRequest(id="a", request=request)]))
        assert fields_of(refusal) == ["month"]


def fields_of(refusal: pb.StreamRecognizeResponse) -> list[str]:
    from google.rpc import status_pb2

    return fields(status_pb2.Status.FromString(refusal.status.SerializeToString()))
