"""Too much at once, too late, too large: refused at once, and nobody else suffers."""

import asyncio
import logging
import re
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from l2r2.bundle import Bundle
from l2r2.errors import BackendError, ConfigError, DeadlinePassed, InputError, Overloaded
from l2r2.machine import available_cores
from l2r2.types import Stage
from l2r2_serving import calling, server
from l2r2_serving.bundles import OpenBundle
from l2r2_serving.client import Client
from l2r2_serving.deadline import Costs, Deadline
from l2r2_serving.limits import check_top_k
from l2r2_serving.observing import Call, Nobody
from l2r2_serving.reading import Answering, behind
from l2r2_serving.server import RecognitionServer
from l2r2_serving.settings import ServerSettings
from l2r2_serving.v1 import recognition_pb2 as pb
from tests.serving.running import BrokenLocalizer, ChangedBundle, GatedLocalizer, Running, eventually, running
from tests.serving.statuses import detail, reason, refused
from tests.serving.wire import RawCaller, message
from tests.tiny import RED, encode, make_photo

PHOTO = encode(make_photo(RED))
REQUEST = pb.RecognizeRequest(image=PHOTO)


def test_overload_is_refused_at_once_and_says_when_to_retry(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=2) as place, place.stub() as stub:
        held.localizer.gate.clear()
        calls = [stub.Recognize.future(REQUEST) for _ in range(2)]
        eventually(lambda: place.server.slots.taken == 2)
        code, status = refused(lambda: stub.Recognize(REQUEST))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason(status) == "OVERLOADED"
        assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1
        with place.client() as client, pytest.raises(Overloaded, match="2 requests are in flight"):
            client.recognize_batch([PHOTO])
        held.localizer.gate.set()
        assert [call.result().candidates[0].name for call in calls] == ["red", "red"]
        assert stub.Recognize(REQUEST).candidates[0].name == "red"


def test_what_finds_no_room_is_refused_before_its_message_is_read(bundle: Bundle) -> None:
    ended: list[Call] = []

    class Witness(Nobody):
        def call(self, call: Call) -> None:
            ended.append(call)

    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=1, observer=Witness()) as place, place.stub() as stub:
        held.localizer.gate.clear()
        running_ = stub.Recognize.future(REQUEST)
        eventually(lambda: place.server.slots.taken == 1)
        for method in ("Recognize", "BatchRecognize"):
            with RawCaller(place.address) as caller:
                caller.begin(method)
                assert caller.heard(b"1 requests are in flight"), "without a message"
        eventually(lambda: len(ended) == 2)
        assert {(call.method.rpartition("/")[2], call.code) for call in ended} == {
            ("Recognize", "RESOURCE_EXHAUSTED"),
            ("BatchRecognize", "RESOURCE_EXHAUSTED"),
        }
        with RawCaller(place.address) as caller:  # streams wait for room
            caller.begin("StreamRecognize")
            item = pb.StreamRecognizeRequest(id="a", request=REQUEST).SerializeToString()
            caller.send(message(item), last=True)
            held.localizer.gate.set()
            assert b"red" in caller.data()
        assert running_.result().candidates[0].name == "red"


def test_a_flood_is_refused_and_leaves_nothing_behind(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1, max_queue=2) as place, place.stub() as stub:
        held.localizer.gate.clear()
        calls = [stub.Recognize.future(REQUEST) for _ in range(300)]
        refusals = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 298
        eventually(lambda: sum(call.done() for call in calls) >= len(refusals))
        held.localizer.gate.set()
        codes = [call.code() for call in calls]
        assert sorted(codes, key=str) == [grpc.StatusCode.OK] * 2 + refusals
        eventually(lambda: place.server.slots.taken == 0)
        assert stub.Recognize(REQUEST).candidates[0].name == "red"


@pytest.mark.parametrize("method", ["Recognize", "BatchRecognize"])
@pytest.mark.parametrize("leave", ["deadline", "cancel"])
def test_work_of_a_caller_who_left_is_dropped(leave: str, method: str, bundle: Bundle) -> None:
    request = REQUEST if method == "Recognize" else pb.BatchRecognizeRequest(requests=[REQUEST] * 3)
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        first = stub.Recognize.future(REQUEST)
        eventually(lambda: held.localizer.reached == before + 1)
        waiting = getattr(stub, method).future(request, timeout=0.2 if leave == "deadline" else None)
        if leave == "cancel":
            eventually(lambda: place.server.slots.taken == 2)
            waiting.cancel()
        else:
            assert waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: place.server.slots.taken == 1)
        held.localizer.gate.set()
        assert first.result().candidates[0].name == "red"
        assert stub.Recognize(REQUEST).candidates[0].name == "red"
        assert held.localizer.reached == before + 2


def test_a_worker_asks_the_clock_before_it_starts(opened: OpenBundle) -> None:
    with pytest.raises(DeadlinePassed, match="the deadline passed before the answer was ready"):
        opened.answer(b"never looked at", {}, 5, deadline=Deadline(time.monotonic() - 1.0))
    gone = Deadline()
    gone.gone = True
    with pytest.raises(DeadlinePassed, match="the caller has hung up"):
        opened.answer(b"never looked at", {}, 5, deadline=gone)
    for deadline in (Deadline(time.monotonic() + 60.0), None):
        assert opened.answer(PHOTO, {}, 5, deadline=deadline).prediction.answer.name == "red"


def test_client_says_how_long_it_waited(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.client(timeout_s=0.1) as client:
        held.localizer.gate.clear()
        with pytest.raises(DeadlinePassed, match=r"gave no answer within 0\.1 s"):
            client.recognize(PHOTO)
        held.localizer.gate.set()


def test_a_batch_does_not_shut_others_out(bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held, workers=1) as place, place.stub() as stub:
        held.localizer.gate.clear()
        before = held.localizer.reached
        batch = stub.BatchRecognize.future(pb.BatchRecognizeRequest(requests=[REQUEST] * 20))
        eventually(lambda: held.localizer.reached == before + 1)
        single = stub.Recognize.future(REQUEST)
        eventually(lambda: place.server.slots.taken == 2)
        seen: list[int] = []
        single.add_done_callback(lambda _: seen.append(held.localizer.reached))
        held.localizer.gate.set()
        assert single.result().candidates[0].name == "red"
        assert len(batch.result().results) == 20
        # Its turn came after the one item that was running, not after all twenty; the callback may run a little later.
        eventually(lambda: bool(seen))
        assert seen[0] < before + 21


def test_hundred_megabytes_are_refused_and_the_server_lives(served: Running) -> None:
    with served.stub() as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recognize(pb.RecognizeRequest(image=bytes(100 * 2**20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Recognize(REQUEST).candidates[0].name == "red"


def test_client_refuses_what_is_too_large_before_it_sends_it(served: Running) -> None:
    with served.client(max_message_mb=1) as client, pytest.raises(InputError, match=r"at most 1,048,576 are sent"):
        client.recognize(bytes(2**21))


def test_client_with_a_higher_limit_hears_the_servers(bundle: Bundle) -> None:
    refusal = pytest.raises(InputError, match="too large for the server")
    with running(bundle, max_message_mb=1) as place, place.client() as client, refusal:
        client.recognize(bytes(2**21))


def test_more_than_grpcs_own_four_megabytes(served: Running) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1400, 3), dtype=np.uint8)
    data = encode(noise, compress_level=0)
    assert len(data) > 5 * 2**20
    with served.client() as client:
        assert client.recognize(data).prediction.size_px == (1400, 1300)


def test_a_failure_of_ours_is_logged_and_tells_the_caller_nothing(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    broken = ChangedBundle(bundle, BrokenLocalizer)
    with running(broken) as place, place.stub() as stub, caplog.at_level(logging.ERROR, "l2r2_serving"):
        broken.localizer.armed = True
        code, status = refused(lambda: stub.Recognize(REQUEST))
        item = stub.BatchRecognize(pb.BatchRecognizeRequest(requests=[REQUEST])).results[0]
        with place.client() as client, pytest.raises(BackendError, match="nothing is wrong with what was sent"):
            client.recognize(PHOTO)
        broken.localizer.armed = False
        assert stub.Recognize(REQUEST).candidates[0].name == "red"
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in str(status)
    assert "secret" not in str(item)
    assert item.status.code == grpc.StatusCode.INTERNAL.value[0]
    assert [re.sub(" [0-9a-f]{16}", "", record.message) for record in caplog.records] == [
        "request failed: RuntimeError"
    ] * 3
    assert all(record.exc_info for record in caplog.records)


def test_a_callers_mistake_is_not_logged(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    with served.stub() as stub, caplog.at_level(logging.INFO, "l2r2_serving"):
        refused(lambda: stub.Recognize(pb.RecognizeRequest(image=b"text")))
    assert not caplog.records


def test_a_connection_ends_by_age_and_no_call_with_it(bundle: Bundle) -> None:
    """Connections are told apart by their callers' ports."""
    peers, age_s = set(), 0.3

    class Witness(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
            return behind(self.seeing, await continuation(details))

        def seeing(self, answer: Answering) -> Answering:
            async def seen(messages, context):  # type: ignore[no-untyped-def]
                peers.add(context.peer())
                return await answer(messages, context)

            return seen

    changed = ChangedBundle(bundle, GatedLocalizer)
    with (
        running(changed, interceptors=[Witness()], max_connection_age_s=age_s) as place,
        place.stub() as stub,
    ):
        changed.localizer.gate.clear()
        held = stub.Recognize.future(pb.RecognizeRequest(image=PHOTO))
        time.sleep(4 * age_s)
        changed.localizer.gate.set()
        assert held.result().candidates[0].name == "red"
        eventually(lambda: stub.Recognize(pb.RecognizeRequest(image=PHOTO)) and len(peers) > 3)


def test_a_caller_that_says_nothing_any_more_leaves_no_stream(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEPALIVE_S", 1.0)
    monkeypatch.setattr(server, "KEEPALIVE_TIMEOUT_S", 1.0)
    with running(bundle) as place, RawCaller(place.address) as caller:  # which answers no ping
        caller.begin("StreamRecognize")
        assert caller.heard(b"x-request-id")
        assert not caller.heard(b"nothing")  # until the server hangs up
        eventually(lambda: place.server.rooms.calls.open == 0)


@pytest.mark.parametrize(("least_s", "stays"), [(0.0, True), (1000.0, False)])
def test_callers_may_ping(least_s: float, stays: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of ours do so once a minute, in an idle stream as well."""
    monkeypatch.setattr(server, "PING_S", least_s)
    assert least_s == server.PING_S
    with running(bundle) as place, RawCaller(place.address) as caller:
        caller.begin("StreamRecognize")
        assert caller.heard(b"x-request-id")
        try:
            for _ in range(10):
                caller.ping()
                time.sleep(0.02)
            caller.send(message(pb.StreamRecognizeRequest(id="a", request={"image": PHOTO}).SerializeToString()))
            answered = caller.heard(b"red")
        except ConnectionError:  # the server hung up
            answered = False
        assert answered == stays


def test_clients_ping_no_oftener_than_servers_allow() -> None:
    assert server.PING_S < calling.KEEPALIVE_S


def test_a_port_that_is_taken_is_said(served: Running) -> None:
    async def listen() -> None:
        server = RecognitionServer(ServerSettings(port=served.server.port, workers=1))
        try:
            await server.start()
        finally:
            await server.stop(0)

    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{served.server.port}"):
        asyncio.run(listen())


def test_nobody_there_is_said() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Exception, match="cannot be reached") as caught:
        client.recognize(PHOTO)
    assert type(caught.value).__name__ == "ServingError"


def test_defaults_follow_the_cores() -> None:
    settings = ServerSettings()
    assert settings.worker_count == available_cores()
    assert settings.slot_count == 8 * available_cores()
    assert ServerSettings(workers=3).slot_count == 24


@pytest.mark.parametrize("top_k", [0, 101])
def test_top_k_out_of_range(top_k: int) -> None:
    with pytest.raises(InputError, match=f"top_k is {top_k}; expected 1 to 100"):
        check_top_k(top_k)


def test_costs_are_rarely_exceeded() -> None:
    costs = Costs()
    assert costs.expected_s(Stage.FULL) == 0.0
    times = np.random.default_rng(0).uniform(8, 12, 400)
    late = 0
    for ms in times:
        late += ms / 1000 > costs.expected_s(Stage.FULL)
        costs.learn({"decode": 50.0, "render FULL": ms / 4, "classify FULL": 3 * ms / 4, "classify FG": 99.0})
    assert late <= 4
    assert 0.010 < costs.expected_s(Stage.FULL) < 0.020
    costs.learn({"classify FG": 1.0})
    assert costs.expected_s(Stage.FULL) > 0.010
