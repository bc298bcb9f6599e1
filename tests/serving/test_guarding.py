"""A running stream ends when its caller's rights do, and what it had accepted is answered."""

import asyncio
import queue
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from l2r2.bundle import Bundle
from l2r2_serving import auth, guarding
from l2r2_serving.auth import Token, TokenInterceptor, Tokens, hash_of
from l2r2_serving.errors import NotAllowed
from l2r2_serving.guarding import GuardedStream
from l2r2_serving.observing import Call, Nobody
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.renewed import put
from tests.serving.running import PATIENCE_S, ChangedBundle, GatedLocalizer, eventually, running
from tests.serving.statuses import reason, refused
from tests.serving.test_auth import written
from tests.tiny import RED, encode, make_photo

SENT = [("authorization", "Bearer one")]
REQUEST = pb.RecognizeRequest(image=encode(make_photo(RED)))
APP = Token(sha256=hash_of("one"))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "LOOK_S", 0.02)


class Talk:
    """A stream to which a test sends item by item."""

    def __init__(self, stub: Any) -> None:
        self.items: queue.Queue[Any] = queue.Queue()
        self.call = stub.StreamRecognize(iter(self.items.get, None), metadata=SENT, timeout=PATIENCE_S)
        self.answers = iter(self.call)

    def send(self, *names: str) -> None:
        for name in names:
            self.items.put(pb.StreamRecognizeRequest(id=name, request=REQUEST))

    def end(self) -> tuple[set[str], grpc.StatusCode, Any]:
        """What is still answered, and how it is refused more."""
        answered: set[str] = set()

        def take() -> None:
            for each in self.answers:
                assert each.HasField("response")
                answered.add(each.id)

        try:
            return answered, *refused(take)
        finally:
            self.items.put(None)


class Ends(Nobody):
    """How calls ended."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def call(self, call: Call) -> None:
        self.codes.append(call.code)


def test_an_idle_stream_ends_soon_after_its_token_is_taken_away(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "t.toml", app=APP, other=Token(sha256=hash_of("two")))
    door, ends = TokenInterceptor(Tokens(path)), Ends()
    with running(bundle, interceptors=[door], observer=ends) as place, place.stub() as stub:
        talk = Talk(stub)
        talk.send("a")
        assert next(talk.answers).id == "a"
        written(path, app=APP)  # another's is taken away
        talk.send("b")
        assert next(talk.answers).id == "b"
        written(path, other=Token(sha256=hash_of("two")))
        answered, code, status = talk.end()
        assert (answered, code, reason(status)) == (set(), grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert status.message == guarding.ENDED
        assert door.refused == {"UNAUTHENTICATED": 1}
    assert ends.codes == ["UNAUTHENTICATED"]


def test_what_was_accepted_is_answered_and_nothing_more_is_read(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[GuardedStream] = []

    def guarded(*parts: Any) -> GuardedStream:
        streams.append(GuardedStream(*parts))
        return streams[-1]

    monkeypatch.setattr(auth, "GuardedStream", guarded)
    path, gated = written(tmp_path / "t.toml", app=APP), ChangedBundle(bundle, GatedLocalizer)
    with running(gated, interceptors=[TokenInterceptor(Tokens(path))], workers=1) as place, place.stub() as stub:
        gated.localizer.reached = 0
        gated.localizer.gate.clear()
        talk = Talk(stub)
        talk.send("a")
        eventually(lambda: gated.localizer.reached == 1)
        written(path)
        eventually(lambda: streams[0].refusal is not None)
        talk.send("b", "c")
        gated.localizer.gate.set()
        answered, code, _ = talk.end()
        assert (answered, code) == ({"a"}, grpc.StatusCode.UNAUTHENTICATED)
        assert gated.localizer.reached == 1


def test_a_stream_ends_when_the_last_day_is_over(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_today", lambda: date(2030, 1, 31))
    path = written(tmp_path / "t.toml", app=APP.model_copy(update={"expires": date(2030, 1, 31)}))
    with running(bundle, interceptors=[TokenInterceptor(Tokens(path))]) as place, place.stub() as stub:
        talk = Talk(stub)
        talk.send("a")
        assert next(talk.answers).id == "a"
        monkeypatch.setattr(auth, "_today", lambda: date(2030, 2, 1))
        assert talk.end()[1] is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_whose_method_is_taken_away_ends_with_that(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "t.toml", app=APP)
    with running(bundle, interceptors=[TokenInterceptor(Tokens(path))]) as place, place.stub() as stub:
        talk = Talk(stub)
        talk.send("a")
        assert next(talk.answers).id == "a"
        written(path, app=Token(sha256=APP.sha256, methods=("GetBundle",)))
        _, code, status = talk.end()
        assert (code, reason(status)) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")


def test_a_stream_goes_on_while_the_file_is_broken(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "t.toml", app=APP)
    with running(bundle, interceptors=[TokenInterceptor(Tokens(path))]) as place, place.stub() as stub:
        talk = Talk(stub)
        talk.send("a")
        assert next(talk.answers).id == "a"
        put(path, "[tokens")
        eventually(lambda: "the changed token file is refused" in caplog.text)
        for name in "bc":
            talk.send(name)
            assert next(talk.answers).id == name
        talk.items.put(None)
        assert list(talk.answers) == []
        assert talk.call.code() is grpc.StatusCode.OK


def test_reflection_ends_too(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "t.toml", app=APP)
    asked: queue.Queue[Any] = queue.Queue()
    asked.put(reflection_pb2.ServerReflectionRequest(list_services=""))
    with (
        running(bundle, interceptors=[TokenInterceptor(Tokens(path))], reflection=True) as place,
        place.channel() as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(iter(asked.get, None), metadata=SENT, timeout=PATIENCE_S)
        assert next(answers).list_services_response.service
        written(path)
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        asked.put(None)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_server_that_stops_says_so_to_a_guarded_stream(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "t.toml", app=APP)
    with running(bundle, interceptors=[TokenInterceptor(Tokens(path))]) as place, place.stub() as stub:
        talk = Talk(stub)
        talk.send("a")
        assert next(talk.answers).id == "a"
        place.run(place.server.stop(5.0))
        assert talk.end()[1] is grpc.StatusCode.UNAVAILABLE


def test_many_idle_streams_cost_no_more_than_a_look(bundle: Bundle, tmp_path: Path) -> None:
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1

    async def idle() -> None:
        stream = GuardedStream(SimpleNamespace(read=asyncio.Event().wait), check, lambda: 1)
        with stream.watched(), pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.read(), 0.2)
        assert stream.refusal is None

    asyncio.run(idle())
    assert checks == 0  # nothing changed


def test_messages_end_as_if_the_caller_had_ended_them() -> None:
    arrived: list[object] = [1, 2]
    states: Iterator[int] = iter(range(100))

    async def read() -> object:
        if arrived:
            return arrived.pop(0)
        await asyncio.Event().wait()
        return None

    def check() -> None:
        raise NotAllowed("no more")

    async def all_of_them() -> tuple[list[object], GuardedStream]:
        stream = GuardedStream(SimpleNamespace(read=read, peer="p"), check, lambda: next(states))
        with stream.watched():
            return [each async for each in stream.messages()], stream

    messages, stream = asyncio.run(all_of_them())
    assert messages == [1, 2]
    assert str(stream.refusal) == "no more"
    assert stream.peer == "p"
    assert asyncio.run(stream.read()) is grpc.aio.EOF


def test_a_read_that_is_given_up_from_outside_stays_given_up() -> None:
    """As when the server stops."""

    async def stopped() -> None:
        stream = GuardedStream(SimpleNamespace(read=asyncio.Event().wait), lambda: None, lambda: 1)
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert stream.refusal is None

    asyncio.run(stopped())
