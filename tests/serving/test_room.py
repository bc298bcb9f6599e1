"""What may be open at once: whoever holds calls open, with a token or without, leaves room for the others."""

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from l2r2.bundle import Bundle
from l2r2_serving import reading
from l2r2_serving.auth import TokenInterceptor, Tokens, hash_of
from l2r2_serving.fields import MAX_FIELDS
from l2r2_serving.observing import Call, Nobody
from l2r2_serving.shedding import CHECKS_EACH, WATCHERS_EACH
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.renewed import put
from tests.serving.running import ChangedBundle, GatedLocalizer, Running, eventually, running
from tests.serving.statuses import reason, refused
from tests.serving.wire import RawCaller, message
from tests.tiny import RED, encode, make_photo

REQUEST = pb.RecognizeRequest(image=encode(make_photo(RED)))
SERVING = health_pb2.HealthCheckResponse.SERVING
EMPTY = health_pb2.HealthCheckRequest()


class Ends(Nobody):
    """How calls ended."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def call(self, call: Call) -> None:
        self.codes.append(call.code)


@contextmanager
def guarded(bundle: Bundle, folder: Path, **settings: Any) -> Iterator[Running]:
    """A server with two callers, "one" and "two"."""
    text = "".join(f'[tokens.{name}]\nsha256 = "{hash_of(name)}"\n' for name in ("one", "two"))
    door = TokenInterceptor(Tokens(put(folder / "t.toml", text)))
    with running(bundle, interceptors=[door], **settings) as place:
        yield place


def as_caller(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {name}")]


def test_watchers_without_a_token_shut_nobody_out(bundle: Bundle, tmp_path: Path) -> None:
    with guarded(bundle, tmp_path) as place, place.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watching, ended = [], []
        for each in [health.Watch(EMPTY) for _ in range(200)]:
            try:
                assert next(each).status == SERVING
                watching.append(each)
            except grpc.RpcError as error:
                ended.append(error.code())
        assert len(watching) == WATCHERS_EACH
        assert set(ended) == {grpc.StatusCode.UNIMPLEMENTED}  # which clients take for healthy
        assert health.Check(EMPTY).status == SERVING
        with place.stub() as stub:
            assert stub.Recognize(REQUEST, metadata=as_caller("one")).candidates
        watching[0].cancel()

        def watched() -> bool:
            try:
                return next(health.Watch(EMPTY)).status == SERVING
            except grpc.RpcError:
                return False

        eventually(watched)  # room again


def test_messages_of_health_that_never_end_are_few_and_ended(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "OPEN_READ_S", 1000.0)
    with guarded(bundle, tmp_path) as place, ExitStack() as stack, place.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(CHECKS_EACH):
            caller = stack.enter_context(RawCaller(place.address))
            caller.begin("/grpc.health.v1.Health/Check")
            caller.send(message(bytes(100))[:50])

        def full() -> bool:
            try:
                health.Check(EMPTY)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        eventually(full)
        with place.stub() as stub:  # the others do not notice
            assert stub.Recognize(REQUEST, metadata=as_caller("one")).candidates
        stack.close()
        eventually(lambda: not full())
    monkeypatch.setattr(reading, "OPEN_READ_S", 0.05)
    with guarded(bundle, tmp_path) as place, RawCaller(place.address) as caller:
        caller.begin("/grpc.health.v1.Health/Check")
        caller.send(message(bytes(100))[:50])
        assert caller.heard(b"no message within 0.05 s")


def test_a_health_message_that_is_none_is_not_logged(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with running(bundle) as place, place.channel() as channel:
        for method in ("Check", "List"):
            code, _ = refused(lambda method=method: channel.unary_unary(f"/grpc.health.v1.Health/{method}")(b"\xff"))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
        code, _ = refused(lambda: next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


def test_idle_streams_of_one_caller_shut_no_other_out(bundle: Bundle, tmp_path: Path) -> None:
    ends = Ends()
    with guarded(bundle, tmp_path, observer=ends, max_queue=4) as place:
        each = place.server.rooms.calls.each
        waiting = queue.Queue[None]()
        with place.stub() as stub:
            streams = [stub.StreamRecognize(iter(waiting.get, None), metadata=as_caller("one")) for _ in range(each)]
            for stream in streams:
                assert stream.initial_metadata()  # taken
            code, status = refused(lambda: stub.Recognize(REQUEST, metadata=as_caller("one")))
            assert (code, reason(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert "of your calls are open" in status.message
            assert len(status.details) == 2  # RetryInfo as well
            assert stub.Recognize(REQUEST, metadata=as_caller("two")).candidates
            for stream in streams:
                stream.cancel()
            eventually(lambda: ends.codes.count("CANCELLED") == each)
            assert stub.Recognize(REQUEST, metadata=as_caller("one")).candidates
    assert sorted(ends.codes) == sorted(["CANCELLED"] * each + ["OK", "OK", "RESOURCE_EXHAUSTED"])


def test_streams_that_come_and_go_leave_no_queue(bundle: Bundle) -> None:
    """Items with a session are finished for a caller who comes back, but only those that had a slot."""
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=2) as place:
        before = held.localizer.reached
        held.localizer.gate.clear()
        for n in range(8):
            with place.stub() as stub:
                names = [f"{n}-{k}" for k in range(4)]
                stream = stub.StreamRecognize(
                    pb.StreamRecognizeRequest(id=name, session="0123456789abcdef", request=REQUEST) for name in names
                )
                stream.initial_metadata()
                eventually(lambda: place.server.slots.taken == 2)
        eventually(lambda: place.server.rooms.calls.open == 0)
        eventually(lambda: len(place.server.memory._entries) <= 2)
        held.localizer.gate.set()
        with place.stub() as stub:
            eventually(lambda: place.server.slots.taken == 0)
            assert stub.Recognize(REQUEST).candidates
        assert held.localizer.reached <= before + 3


@pytest.mark.parametrize("method", ["BatchRecognize", "Recognize", "StreamRecognize"])
def test_messages_of_millions_of_parts_are_refused_unread(method: str, bundle: Bundle) -> None:
    """Of two bytes each on the wire and hundreds in memory."""
    data = b"\x0a\x00" * 2**20 if method == "BatchRecognize" else _metadata(2**18)
    if method == "StreamRecognize":
        data = _field(pb.StreamRecognizeRequest.DESCRIPTOR.fields_by_name["request"].number, data)
    with running(bundle) as place, place.channel() as channel:
        path = f"/l2r2.v1.RecognitionService/{method}"
        if method == "StreamRecognize":
            code, status = refused(lambda: list(channel.stream_stream(path)(iter([data]))))
        else:
            code, status = refused(lambda: channel.unary_unary(path)(data))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert status.message == f"the message has more than {MAX_FIELDS:,} fields; send less at once"


def test_a_call_without_a_message_is_refused(bundle: Bundle) -> None:
    with running(bundle) as place, RawCaller(place.address) as caller:
        caller.begin("Recognize")
        caller.send(b"", last=True)
        assert caller.heard(b"the call has no message")


def test_who_is_counted_is_the_token_and_not_the_host(bundle: Bundle, tmp_path: Path) -> None:
    with guarded(bundle, tmp_path, max_queue=2, max_per_client=1) as place, place.stub() as stub:
        answered = []

        def ask(name: str) -> None:
            answered.append(stub.Recognize(REQUEST, metadata=as_caller(name)).candidates[0].name)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("one", "two")]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert answered == ["red", "red"]


def _metadata(entries: int) -> bytes:
    """That many entries of `RecognizeRequest.metadata`, all empty."""
    number = pb.RecognizeRequest.DESCRIPTOR.fields_by_name["metadata"].number
    return _field(number, b"") * entries


def _field(number: int, data: bytes) -> bytes:
    size, out = len(data), bytearray([number << 3 | 2])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + data
