"""Building, warming and stopping a server."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined, unused-ignore]

from l2r2.bundle import Bundle
from l2r2.errors import ConfigError
from l2r2.machine import give_back_memory
from l2r2.runtimes.batching import Ran
from l2r2_serving.bundles import OpenBundle, Shelf, open_bundle
from l2r2_serving.engine import Engine
from l2r2_serving.inference import grpc_predict_v2_pb2_grpc
from l2r2_serving.kserve import SERVICE as KSERVE
from l2r2_serving.kserve import KServeService
from l2r2_serving.limits import Slots
from l2r2_serving.memory import Memory
from l2r2_serving.observing import Nobody, Observer
from l2r2_serving.reading import ReadingInterceptor
from l2r2_serving.service import SERVICE, RecognitionService
from l2r2_serving.settings import ServerSettings
from l2r2_serving.shedding import Rooms, SheddingInterceptor
from l2r2_serving.v1 import recognition_pb2_grpc

ARRIVING = 64
"""Calls beyond twice the slots that may be open: streams that say nothing, and messages still on their way. One caller
may have three quarters of all. Above that a call is refused before its message is read, so that a flood does not fill
the memory."""

REFUSED = 128
"""Calls that may be about to be refused; above that gRPC itself refuses, without a reason."""

KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 60.0, 20.0
"""Between pings to a caller that says nothing, and how long it may take to answer: those who vanished without a word
leave no streams behind."""

PING_S = 30.0
"""At least between a caller's own pings; clients of ours send one a minute, and gRPC's default of five would end their
connections."""

LINGER_S = 1.0
"""How long the last answers may take to leave, and how long a health watcher can hold up a stop."""

_log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Looks for new versions of a bundle."""

    async def run(self, server: RecognitionServer) -> None:
        """Until cancelled."""
        ...


class RecognitionServer:
    """The service, its health and its workers, in one event loop.

    `start`, then `warm_up`, then `stop`; in between `grpc.health.v1` says NOT_SERVING, SERVING, NOT_SERVING, for the
    service's name, for the whole server ("") and, once there are some, for each bundle
    ("l2r2.v1.RecognitionService/NAME").

    Attributes:
        slots: Calls in flight.
        rooms: Calls that are open.
        memory: What streams were answered.
        ready: Whether health says SERVING.
        shared_port: Whether others listen there too.
        port: Where it listens; 0 before `start`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        observer: Observer | None = None,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        credentials: grpc.ServerCredentials | None = None,
        shared_port: bool = False,
        ran: Ran | None = None,
    ) -> None:
        """Make the parts; nothing listens yet.

        Args:
            observer: Who watches.
            interceptors: Who may refuse a call before it is looked at.
            credentials: Of TLS; None: plain text.
            shared_port: Other servers of ours listen there too: `processes`.
            ran: Told of inferences that join the calls of several threads.
        """
        self._settings = settings
        self._interceptors = interceptors
        self._credentials = credentials
        self.shared_port = shared_port
        self._ran = ran
        self._shelf = Shelf()
        self._pool = ThreadPoolExecutor(settings.worker_count, thread_name_prefix="l2r2-worker")
        self._health = health.HealthServicer()
        self._names = ["", SERVICE, KSERVE]
        self.slots = Slots(settings.slot_count, settings.max_per_client)
        self.rooms = Rooms(2 * settings.slot_count + ARRIVING)
        observer = observer or Nobody()
        engine = Engine(self._shelf, self._pool, settings.worker_count, self.slots, observer)
        self.memory = Memory(settings.memory_s)
        self.ready = False
        self._service = RecognitionService(engine, self.memory, observer)
        self._stages = KServeService(self._shelf, engine, self._pool, observer)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """HOST:PORT, as a client takes it."""
        return _join(self._settings.host, self.port)

    async def start(self) -> None:
        """Listen; nothing is served yet, unless `warm_up` came first.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        settings = self._settings
        if not self.shared_port:
            check_address(settings.host, settings.port)
        limit = settings.max_message_mb * 2**20
        server = grpc.aio.server(
            interceptors=[*self._interceptors, self._shedding(), ReadingInterceptor()],
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                # Otherwise a second server on the same port would silently share its callers.
                ("grpc.so_reuseport", int(self.shared_port)),
                ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE_S)),
                ("grpc.keepalive_timeout_ms", int(1000 * KEEPALIVE_TIMEOUT_S)),
                ("grpc.http2.ping_timeout_ms", int(1000 * KEEPALIVE_TIMEOUT_S)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * PING_S)),
                *_aging(settings.max_connection_age_s),
            ],
            maximum_concurrent_rpcs=self.rooms.size + REFUSED,
        )
        recognition_pb2_grpc.add_RecognitionServiceServicer_to_server(self._service, server)  # type: ignore[no-untyped-call]
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._stages, server)  # type: ignore[no-untyped-call]
        if not self.ready:
            await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        health_names = _add_health(self._health, server)
        if settings.reflection:
            _add_reflection([SERVICE, KSERVE, *health_names], server)
        address = _join(settings.host, settings.port)
        if self._credentials is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, self._credentials)
        await server.start()
        self._server = server

    async def warm_up(self, *bundles: Bundle) -> None:
        """Load bundles, recognize a photograph with each on every worker, and only then say SERVING.

        Raises:
            ConfigError: two of one name.
            ArtifactError, BackendError, ConfigError: as `open_bundle` and `OpenBundle.warm_up`.
        """
        names = [bundle.manifest.name for bundle in bundles]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{names.count(name)} bundles are named {name!r}; expected each of another name")
        loop = asyncio.get_running_loop()
        opened = [await loop.run_in_executor(self._pool, self.open, bundle) for bundle in bundles]
        workers = self._settings.worker_count
        together = threading.Barrier(workers)

        def warm() -> None:
            # Each thread waits for the others, so that none of them takes two turns and another none.
            together.wait()
            for each in opened:
                each.warm_up()

        try:
            await asyncio.gather(*(loop.run_in_executor(self._pool, warm) for _ in range(workers)))
        finally:
            together.abort()  # whoever still waits after a failure or a stop would wait for ever
        give_back_memory()
        for each in opened:
            self.put(each)
        self._names += [f"{SERVICE}/{name}" for name in names]
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    def bundles(self) -> list[OpenBundle]:
        """What is served, by name."""
        return self._shelf.all()

    def open(self, bundle: Bundle) -> OpenBundle:
        """Load a bundle's models as the settings say; seconds, in a thread.

        Raises:
            As `open_bundle`.
        """
        settings = self._settings
        return open_bundle(bundle, settings.runtime, settings.precision, settings.threads, self._ran)

    def put(self, opened: OpenBundle) -> None:
        """Serve a warm bundle from the next call on, in place of another of its name; in the event loop.

        Calls in flight finish with the old one, whose models go with the last of them.
        """
        self._shelf.put(opened)

    async def stop(self, grace_s: float | None = None) -> None:
        """Say NOT_SERVING, after `drain_s` take no more calls, let those in flight finish, then leave.

        Args:
            grace_s: How long they get; None: as the settings say.
        """
        grace = self._settings.grace_s if grace_s is None else grace_s
        was_ready, self.ready = self.ready, False
        await self._health.enter_graceful_shutdown()
        if was_ready:
            await asyncio.sleep(self._settings.drain_s)
        self._service.stop()
        if self._server is not None:
            stopping = asyncio.create_task(self._server.stop(grace))
            # A health watcher never finishes: without this it would hold the server for the whole grace.
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self.memory.settled()
                    await self.rooms.calls.idle()
                    await self.slots.idle()
            await self._server.stop(min(LINGER_S, grace))
            await stopping
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _shedding(self) -> SheddingInterceptor:
        services = {SERVICE: self._service.calls, KSERVE: self._stages.calls}
        taking = {f"/{SERVICE}/Recognize", f"/{SERVICE}/BatchRecognize", f"/{KSERVE}/ModelInfer"}
        return SheddingInterceptor(self.slots, self.rooms, services, frozenset(taking))

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        self.ready = status == health_pb2.HealthCheckResponse.SERVING
        for name in self._names:
            await self._health.set(name, status)


async def serve(
    bundles: Sequence[Bundle],
    settings: ServerSettings,
    ready: Callable[[str], None],
    watchers: Sequence[Watcher] = (),
    made: Callable[[RecognitionServer], None] = lambda _server: None,
    **parts: Any,
) -> None:
    """Serve bundles until SIGINT or SIGTERM, then stop gracefully. A second signal ends the process at once.

    Args:
        ready: Called with HOST:PORT once the server is warm.
        watchers: Look for new versions once it is.
        made: Called with the server before it listens.
        parts: As `RecognitionServer` takes them.
    Raises:
        ConfigError: as `RecognitionServer.start`.
        ArtifactError, BackendError: as `RecognitionServer.warm_up`.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask() -> None:
        asked.set()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_DFL)

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, ask)
    server = RecognitionServer(settings, **parts)
    made(server)
    if not server.shared_port:  # otherwise callers would come here who are answered elsewhere
        await server.start()
    warming = asyncio.create_task(server.warm_up(*bundles))
    stopping = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({warming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if warming.done():
            warming.result()
            if server.shared_port:
                await server.start()
            ready(server.address)
            watching = [asyncio.create_task(watcher.run(server)) for watcher in watchers]
            await stopping
            for task in watching:
                task.cancel()
            _log.info("stopping; %d requests in flight get up to %g s", server.slots.taken, settings.grace_s)
    finally:
        warming.cancel()
        stopping.cancel()
        await server.stop()


def _aging(seconds: float | None) -> list[tuple[str, int]]:
    """Options of a server whose connections end; the calls on them may go on as long as they like."""
    return [] if seconds is None else [("grpc.max_connection_age_ms", max(1, round(1000 * seconds)))]


def check_address(host: str, port: int) -> None:
    """Try the address first: gRPC would say the reason to its own log and not to us.

    Raises:
        ConfigError: it cannot be listened on.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
    except OSError as error:
        place = _join(host, port)
        raise ConfigError(f"cannot listen on {place}: {error.strerror}; choose another --host or --port") from error


def _add_health(servicer: health.HealthServicer, server: grpc.aio.Server) -> list[str]:
    from grpc_health.v1 import health_pb2_grpc

    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return [str(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)]


def _add_reflection(services: list[str], server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
