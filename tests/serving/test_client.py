"""Both Python clients: tries that heal, queues that survive, and secrets that stay secret."""

import asyncio
import itertools
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError, DeadlinePassed, ImageError, InputError, MetadataError, Overloaded, ServingError
from l2r2_serving import status
from l2r2_serving.answer import Options
from l2r2_serving.async_client import AsyncClient
from l2r2_serving.auth import Token, TokenInterceptor, Tokens, hash_of
from l2r2_serving.calling import WINDOW, Retries, Streamed
from l2r2_serving.client import Client
from l2r2_serving.errors import Unauthenticated, UnknownBundle
from l2r2_serving.observing import Call, Nobody
from l2r2_serving.probe import health
from l2r2_serving.status import DETAILS_KEY, status_of
from l2r2_serving.tls import credentials
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc
from tests.serving.proxy import proxied
from tests.serving.running import PATIENCE_S, ChangedBundle, GatedLocalizer, Running, eventually, running
from tests.serving.test_auth import written
from tests.serving.test_tls import CA, settings
from tests.tiny import GREEN, RED, encode, make_photo

PHOTOS = {"red": encode(make_photo(RED)), "green": encode(make_photo(GREEN))}
QUICK = Retries(most=4, first_s=0.01, longest_s=0.02)


class Blocking:
    """The asynchronous client, driven like the other."""

    def __init__(self, server: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncClient:
            return AsyncClient(server, **options)

        try:
            self._client = self._loop.run_until_complete(make())
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self._loop.run_until_complete(getattr(self._client, name)(*args, **options))

    def recognize_stream(self, *args: Any, **options: Any) -> Iterator[Streamed]:
        stream = self._client.recognize_stream(*args, **options)

        async def following() -> Streamed | None:
            return await anext(stream, None)

        try:
            while (each := self._loop.run_until_complete(following())) is not None:
                yield each
        finally:
            self._loop.run_until_complete(stream.aclose())


@pytest.fixture(params=[Client, Blocking], ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


class Flaky(recognition_pb2_grpc.RecognitionServiceServicer):
    """Fails as often as it is told, then answers; remembers the names of the calls.

    Without an error it fails as a server of gRPC does that stops.
    """

    def __init__(self, error: Exception | None, times: int) -> None:
        self.error, self.times = error, times
        self.ids: list[str] = []
        self.at: list[float] = []

    def ListBundles(self, request: pb.ListBundlesRequest, context: grpc.ServicerContext) -> pb.ListBundlesResponse:
        self.ids.append(dict(context.invocation_metadata())["x-request-id"])
        self.at.append(time.monotonic())
        if self.times:
            self.times -= 1
            if self.error is None:
                context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
            status = status_of(self.error)
            context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
            codes = {code.value[0]: code for code in grpc.StatusCode}
            context.abort(codes[status.code], status.message)
        return pb.ListBundlesResponse(bundles=[pb.BundleInfo(name="a", version="b")])


@pytest.fixture
def flaky() -> Iterator[Callable[..., tuple[Flaky, str]]]:
    servers = []

    def make(error: Exception | None = None, times: int = 0) -> tuple[Flaky, str]:
        servicer = Flaky(error, times)
        server = grpc.server(ThreadPoolExecutor(2))
        recognition_pb2_grpc.add_RecognitionServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return servicer, f"127.0.0.1:{port}"

    yield make
    for server in servers:
        server.stop(None).wait()


def test_what_may_heal_is_tried_again_under_one_name(client: Any, flaky: Any) -> None:
    servicer, address = flaky(ServingError("stopping"), 3)
    with client(address, retries=QUICK) as made:
        assert made.bundles() == {"a": "b"}
    assert len(servicer.ids) == 4
    assert len(set(servicer.ids)) == 1


def test_a_call_that_a_stopping_server_drops_is_tried_again(client: Any, flaky: Any) -> None:
    servicer, address = flaky(None, 5)
    with client(address, retries=QUICK) as made:
        with pytest.raises(
            ServingError, match=f"{address} dropped the call \\(CANCELLED\\), as a server does that stops"
        ):
            made.bundles()
        assert made.bundles() == {"a": "b"}
    assert len(servicer.ids) == 6


def test_calls_are_spread_over_the_addresses_of_a_name(client: Any, bundle: Bundle) -> None:
    """And those of a server that has gone go to the other."""
    seen: list[str] = []

    class Witness(Nobody):
        def __init__(self, name: str) -> None:
            self.name = name

        def call(self, call: Call) -> None:
            seen.append(self.name)

    with (
        running(bundle, observer=Witness("a")) as a,
        running(bundle, observer=Witness("b")) as b,
        client(f"ipv4:{a.address},{b.address}", retries=QUICK) as caller,
    ):

        def until(names: set[str]) -> None:
            seen.clear()
            eventually(lambda: caller.recognize(PHOTOS["red"]) and set(seen) == names)

        until({"a", "b"})
        b.run(b.server.stop(0.0))
        for _ in range(8):
            caller.recognize(PHOTOS["red"])
        until({"a"})


def test_not_for_ever(client: Any, flaky: Any) -> None:
    servicer, address = flaky(ServingError("stopping"), 99)
    with client(address, retries=QUICK) as made, pytest.raises(ServingError, match="stopping"):
        made.bundles()
    assert len(servicer.ids) == 5
    with client(address, retries=Retries(most=0)) as made, pytest.raises(ServingError, match="stopping"):
        made.bundles()
    assert len(servicer.ids) == 6


@pytest.mark.parametrize(
    "error", [UnknownBundle("none"), DeadlinePassed("late"), InputError("bad"), Unauthenticated("who")], ids=repr
)
def test_what_would_be_said_again_is_not_asked_again(error: Exception, client: Any, flaky: Any) -> None:
    servicer, address = flaky(error, 9)
    with client(address, retries=QUICK) as made, pytest.raises(type(error), match=str(error)):
        made.bundles()
    assert len(servicer.ids) == 1


def test_the_server_says_how_long_to_wait(client: Any, flaky: Any) -> None:
    servicer, address = flaky(Overloaded("full"), 1)  # its RetryInfo asks for a second
    with client(address, retries=QUICK) as made:
        made.bundles()
    assert servicer.at[1] - servicer.at[0] >= 0.99


def test_never_longer_than_the_caller_waits(client: Any, flaky: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "RETRY_AFTER_S", 1000.0)
    servicer, address = flaky(Overloaded("full"), 9)
    with client(address, retries=QUICK, timeout_s=PATIENCE_S) as made, pytest.raises(Overloaded, match="full"):
        made.bundles()
    assert len(servicer.ids) == 1  # what the server asks for would be too long


def test_waits_grow_are_bounded_and_are_not_all_the_same() -> None:
    retries = Retries(first_s=1.0, factor=2.0, longest_s=3.0)
    for tried, most in ((0, 1.0), (1, 2.0), (2, 3.0), (9, 3.0)):
        waits = {retries.wait_s(tried) for _ in range(50)}
        assert all(0.5 * most <= wait <= most for wait in waits)
        assert len(waits) > 40
    assert retries.wait_s(0, asked_s=7.0) == 7.0


def test_a_server_that_comes_late_is_waited_for(client: Any, bundle: Bundle) -> None:
    with running(bundle) as place:
        port = place.server.port
    with ThreadPoolExecutor(1) as pool, client(f"127.0.0.1:{port}", retries=Retries(9, 0.05)) as made:
        answer = pool.submit(made.recognize, PHOTOS["red"])
        time.sleep(0.2)
        with running(bundle, port=port):
            assert answer.result(30).prediction.answer.name == "red"


def test_all_methods(client: Any, served: Running, bundle: Bundle) -> None:
    with client(served.address) as made:
        answer = made.recognize(PHOTOS["green"], {"month": "5"}, 2, options=Options(thumbnail_px=32, mask=True))
        assert answer.prediction.answer.name == "green"
        assert answer.thumbnails[0][:2] == b"\xff\xd8"
        assert answer.prediction.region.mask.any()
        batch = made.recognize_batch([PHOTOS["red"], b"text"])
        assert batch[0].prediction.answer.name == "red"
        assert isinstance(batch[1], ImageError)
        assert made.bundles() == {"tiny": bundle.version}
        card = made.bundle()
        assert card == made.bundle("tiny")
        assert (card.name, card.class_names, card.coverage) == ("tiny", ("red", "green", "blue"), None)
        assert card.vocabularies["habitat"] == ("forest", "meadow", "shore")
        with pytest.raises(UnknownBundle):
            made.bundle("none")


def colours(count: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    for number in range(count):
        yield str(number), PHOTOS[("red", "green")[number % 2]], {}


def named(results: list[Streamed]) -> dict[str, str]:
    assert len({each.id for each in results}) == len(results), "an answer was told twice"
    return {each.id: each.result.prediction.answer.name for each in results}


EXPECTED = {str(number): ("red", "green")[number % 2] for number in range(60)}


def test_a_queue(client: Any, served: Running) -> None:
    with client(served.address) as made:
        assert named(list(made.recognize_stream(colours(60)))) == EXPECTED
        assert list(made.recognize_stream(iter([]))) == []


def test_an_error_of_one_is_its_result(client: Any, served: Running) -> None:
    queue = [("a", PHOTOS["red"], {}), ("b", b"text", {}), ("c", PHOTOS["green"], {})]
    with client(served.address) as made:
        found = {each.id: each.result for each in made.recognize_stream(queue)}
    assert isinstance(found["b"], ImageError)
    assert found["c"].prediction.answer.name == "green"


def test_a_photograph_that_cannot_be_sent_ends_the_queue_after_those_before(client: Any, served: Running) -> None:
    for wrong, kind in ((("b", PHOTOS["red"], {"month": "13"}), MetadataError), (("b", bytes(2**21), {}), InputError)):
        found = []
        queue = [("a", PHOTOS["red"], {}), wrong, ("c", PHOTOS["red"], {})]
        with client(served.address, max_message_mb=1) as made, pytest.raises(kind):
            found.extend(each.id for each in made.recognize_stream(queue))
        assert found == ["a"]


def test_a_queue_that_fails_itself_is_heard(client: Any, served: Running) -> None:
    def failing() -> Iterator[tuple[str, bytes, dict[str, str]]]:
        yield "a", PHOTOS["red"], {}
        raise OSError("the card was pulled out")

    found = []
    with client(served.address) as made, pytest.raises(OSError, match="pulled out"):
        found.extend(each.id for each in made.recognize_stream(failing()))
    assert found == ["a"]


def test_the_queue_is_taken_as_it_is_answered(client: Any, bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    taken = itertools.count()
    with running(held, workers=1) as place, client(place.address) as made:
        stream = made.recognize_stream(each for each in colours(500) if next(taken) >= 0)
        next(stream)
        assert next(taken) <= WINDOW + 4
        stream.close()


@pytest.mark.parametrize("after", [1500, 4000, 9000])
def test_a_connection_that_breaks_again_and_again_loses_and_doubles_nothing(
    after: int, client: Any, bundle: Bundle
) -> None:
    counted = ChangedBundle(bundle, GatedLocalizer)
    with running(counted) as place, proxied(place.address) as proxy:
        before = counted.localizer.reached
        proxy.cut_after = after  # a response has about 1 kB
        with client(proxy.address, retries=Retries(20, 0.01, 1.0, 0.01)) as made:
            assert named(list(made.recognize_stream(colours(60)))) == EXPECTED
        assert proxy.connections >= 2
        assert counted.localizer.reached - before == 60


def test_a_queue_gives_up_when_nothing_moves(client: Any) -> None:
    with (
        client("127.0.0.1:1", retries=Retries(2, 0.01)) as made,
        pytest.raises(ServingError, match="cannot be reached"),
    ):
        list(made.recognize_stream(colours(3)))


def test_a_queue_may_have_an_end_in_time(client: Any, bundle: Bundle) -> None:
    held = ChangedBundle(bundle, GatedLocalizer)
    with running(held) as place, client(place.address) as made:
        held.localizer.gate.clear()
        with pytest.raises(DeadlinePassed, match=r"gave no answer within 0\.2 s; give more time"):
            list(made.recognize_stream(colours(9), timeout_s=0.2))
        held.localizer.gate.set()
        assert len(list(made.recognize_stream(colours(9), timeout_s=PATIENCE_S))) == 9


def test_what_comes_after_a_cut_is_sent_at_once(client: Any, bundle: Bundle) -> None:
    """Not only when the next one comes: whoever gives the queue may wait for this one's answer."""
    given: queue.Queue[str | None] = queue.Queue()
    got: queue.Queue[str] = queue.Queue()

    def photos() -> Iterator[tuple[str, bytes, dict[str, str]]]:
        while (name := given.get()) is not None:
            yield name, PHOTOS["red"], {}

    async def later() -> AsyncIterator[tuple[str, bytes, dict[str, str]]]:
        while (name := await asyncio.to_thread(given.get)) is not None:
            yield name, PHOTOS["red"], {}

    with running(bundle) as place, proxied(place.address) as proxy:

        def use() -> None:
            with client(proxy.address, retries=Retries(20, 0.01, 1.0, 0.01)) as made:
                for each in made.recognize_stream(photos() if client is Client else later()):
                    got.put(each.id)

        thread = threading.Thread(target=use)
        thread.start()
        try:
            for name in "abc":
                given.put(name)
                assert got.get(timeout=PATIENCE_S) == name
                before = proxy.connections
                proxy.cut()
                eventually(lambda before=before: proxy.connections > before)
        finally:
            given.put(None)
            thread.join(PATIENCE_S)


def test_a_queue_whose_source_is_cancelled_ends(bundle: Bundle) -> None:
    async def cancelled() -> AsyncIterator[tuple[str, bytes, dict[str, str]]]:
        yield "a", PHOTOS["red"], {}
        task = asyncio.create_task(asyncio.sleep(1000))
        task.cancel()
        await task

    async def use(address: str) -> list[str]:
        found = []
        async with AsyncClient(address) as made, asyncio.timeout(PATIENCE_S):
            try:
                async for each in made.recognize_stream(cancelled()):
                    found.append(each.id)  # noqa: PERF401  those before the error count
            except InputError as error:
                assert str(error) == "the queue of photographs was cancelled"  # noqa: PT017
                return found
        raise AssertionError("it ended as if nothing had been")

    with running(bundle) as place:
        assert asyncio.run(use(place.address)) == ["a"]


def test_who_leaves_a_queue_early_ends_the_call(client: Any, bundle: Bundle) -> None:
    with running(bundle) as place, client(place.address) as made:
        for _ in made.recognize_stream(colours(100)):
            break
        assert made.bundles()


def test_an_asynchronous_queue_survives_too(bundle: Bundle) -> None:
    counted = ChangedBundle(bundle, GatedLocalizer)

    async def slowly() -> AsyncIterator[tuple[str, bytes, dict[str, str]]]:
        for each in colours(60):
            await asyncio.sleep(0.002)
            yield each

    async def use(address: str) -> list[Streamed]:
        async with AsyncClient(address, retries=Retries(20, 0.01, 1.0, 0.01)) as made:
            return [each async for each in made.recognize_stream(slowly())]

    with running(counted) as place, proxied(place.address) as proxy:
        before = counted.localizer.reached
        proxy.cut_after = 4000
        assert named(asyncio.run(use(proxy.address))) == EXPECTED
        assert counted.localizer.reached - before == 60


def test_tls_certificate_and_token(client: Any, bundle: Bundle, tmp_path: Path) -> None:
    tokens = Tokens(written(tmp_path / "t.toml", app=Token(sha256=hash_of("one"))))
    safe = credentials(settings(tmp_path / "tls", CA.issue_cert("127.0.0.1"), CA))
    own = CA.issue_cert("app.example")
    own.private_key_pem.write_to_path(tmp_path / "own.key")
    (tmp_path / "own.pem").write_bytes(b"".join(part.bytes() for part in own.cert_chain_pems))
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    who = {"tls": tmp_path / "ca.pem", "certificate": (tmp_path / "own.pem", tmp_path / "own.key")}
    with running(bundle, credentials=safe, interceptors=[TokenInterceptor(tokens)]) as place:
        with client(place.address, token="one", **who) as made:
            assert made.recognize(PHOTOS["red"]).prediction.answer.name == "red"
        with client(place.address, token="two", **who) as made, pytest.raises(Unauthenticated):
            made.recognize(PHOTOS["red"])
        for less in ({"tls": who["tls"]}, {}):
            with client(place.address, retries=Retries(0), **less) as made, pytest.raises(ServingError):
                made.recognize(PHOTOS["red"])


def test_plain_text_goes_past_a_proxy_of_the_environment(
    client: Any, flaky: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        _, address = flaky()
        with client(address, token="one", timeout_s=PATIENCE_S) as made:
            assert made.bundles() == {"a": "b"}
        with pytest.raises(grpc.RpcError) as caught:
            health(address)  # whose server has no such method, but answers
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_token_never_travels_as_plain_text(client: Any, tmp_path: Path) -> None:
    for options in ({"token": "one"}, {"certificate": (tmp_path / "a", tmp_path / "b")}):
        with pytest.raises(ConfigError, match=r"expected TLS|goes with TLS"):
            client("example.org:50051", **options)
    with pytest.raises(ConfigError, match=r"nothing\.pem cannot be read"):
        client("example.org:50051", token="one", tls=tmp_path / "nothing.pem")
