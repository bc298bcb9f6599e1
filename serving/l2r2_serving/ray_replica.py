"""A replica of the service on Ray Serve: the servicer of `l2r2 serve` behind the calls that Ray's proxy passes on.

What differs from a server of its own:

- The proxy does not pass a caller's deadline on: a call whose deadline passes is cancelled, but FULL is never left out
  because it would not fit.
- It sends no initial metadata: the request's id comes with the trailing metadata.
- A stream (bidirectional; Ray 2.60 has them) that fails as a whole has a code and a message but no google.rpc.Status;
  each of its items has its own, as ever. What streams were answered is remembered by each replica alone. One that goes
  on holds up a stop for as long as `grace_s`.
- Slots are of each replica; what is open at once is bounded by the proxy, which also asks who calls.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from l2r2 import machine
from l2r2.errors import ConfigError
from l2r2_serving.auth import TokenInterceptor, Tokens
from l2r2_serving.bundles import REGISTRY, OpenBundle, Shelf, find_bundle, open_bundle
from l2r2_serving.engine import Engine
from l2r2_serving.limits import Slots
from l2r2_serving.logs import AccessLog, set_up_logging
from l2r2_serving.memory import Memory
from l2r2_serving.observing import Call, Item, Nobody, Observers
from l2r2_serving.reading import Answering, once
from l2r2_serving.service import SERVICE, RecognitionService
from l2r2_serving.settings import ServerSettings
from l2r2_serving.v1 import recognition_pb2 as pb

HEALTH_S = 30.0
"""A replica that gives no sign of life for so long is replaced; longer than any photograph takes."""

PULSE_S = 0.05
"""Between looks at whether a worker has moved."""


class Pulse(Nobody):
    """Counts the photographs that workers have answered.

    Attributes:
        answered: So far.
    """

    def __init__(self) -> None:
        self.answered = 0

    def item(self, _call: Call, item: Item) -> None:
        """One more, if a worker had it."""
        self.answered += item.answer is not None


class Replica:
    """One process of the service: the servicer of `l2r2 serve` behind Ray's calls.

    Its bundle is open and warm when the constructor returns; only then Ray sends it callers.
    """

    def __init__(self, place: str, settings: ServerSettings) -> None:
        """Open and warm the bundle.

        Args:
            place: Of the bundle, as `find_bundle` takes it; every node must reach it.
            settings: Whose `workers` are of this replica.
        Raises:
            ArtifactError, BackendError, ConfigError: as `find_bundle`, `open_bundle` and `OpenBundle.warm_up`.
        """
        machine.settle_memory()
        set_up_logging(settings.log_format, settings.log_level)
        self._settings = settings
        self._place = place
        self._guard = None if settings.tokens is None else TokenInterceptor(Tokens(settings.tokens))
        self._pool = ThreadPoolExecutor(settings.worker_count, thread_name_prefix="l2r2-worker")
        self._pulse = Pulse()
        self._shelf = Shelf()
        self._shelf.put(self._open(place))
        self._service: RecognitionService | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve another version of the bundle from the next call on, once it is warm; Ray calls this.

        Args:
            user_config: "bundle": its place.
        Raises:
            ConfigError: it has another name than the one that is served.
            ArtifactError, BackendError, ConfigError: as the constructor; the old one serves on.
        """
        place = str(user_config.get("bundle", self._place))
        if place == self._place:
            return
        opened = await asyncio.to_thread(self._open, place)
        (served,) = self._shelf.all()
        if opened.name != served.name:
            raise ConfigError(f"{place} is bundle {opened.name!r}; expected another version of {served.name!r}")
        self._shelf.put(opened)
        self._place = place

    async def check_health(self) -> None:
        """Raise when there is nothing to serve, and never return while every worker is stuck; Ray calls this.

        With many photographs waiting a worker's turn may be far away; so one that is answered meanwhile will do.
        """
        self._shelf.require_any()
        turn, before = self._pool.submit(int), self._pulse.answered
        try:
            while not turn.done() and self._pulse.answered == before:
                await asyncio.sleep(PULSE_S)
        finally:
            turn.cancel()

    async def Recognize(self, request: pb.RecognizeRequest, grpc_context: Any) -> Message:  # noqa: N802
        """As `RecognitionService.Recognize`; so are the others."""
        return await self._unary("Recognize", request, pb.RecognizeResponse(), grpc_context)

    async def BatchRecognize(self, request: pb.BatchRecognizeRequest, grpc_context: Any) -> Message:  # noqa: N802
        """Answer each request of a batch."""
        return await self._unary("BatchRecognize", request, pb.BatchRecognizeResponse(), grpc_context)

    async def GetBundle(self, request: pb.GetBundleRequest, grpc_context: Any) -> Message:  # noqa: N802
        """Describe a bundle."""
        return await self._unary("GetBundle", request, pb.GetBundleResponse(), grpc_context)

    async def ListBundles(self, request: pb.ListBundlesRequest, grpc_context: Any) -> Message:  # noqa: N802
        """Name what is served."""
        return await self._unary("ListBundles", request, pb.ListBundlesResponse(), grpc_context)

    async def StreamRecognize(self, requests: Any, grpc_context: Any) -> AsyncIterator[Message]:  # noqa: N802
        """Answer each item when it is ready."""
        context = _Context(grpc_context, requests)
        task = asyncio.create_task(self._call("StreamRecognize", self._servicer().StreamRecognize, context))
        try:
            while (response := await context.next_written(task)) is not None:
                yield response
            await task
        finally:
            task.cancel()

    async def Check(self, request: health_pb2.HealthCheckRequest, grpc_context: Any) -> Message:  # noqa: N802
        """Health: a replica that hears this is warm."""
        known = ["", SERVICE, *(f"{SERVICE}/{opened.name}" for opened in self._shelf.all())]
        if request.service not in known:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details("unknown service")
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def List(self, _request: object, grpc_context: Any) -> Message:  # noqa: N802
        """Not here."""
        _refuse(grpc_context)
        return health_pb2.HealthListResponse()

    async def Watch(self, _request: object, grpc_context: Any) -> AsyncIterator[Message]:  # noqa: N802
        """Not here: each watcher would hold a request of a replica for ever. Clients take that for healthy."""
        _refuse(grpc_context)
        yield health_pb2.HealthCheckResponse()

    async def _unary(self, method: str, request: Message, empty: Message, grpc_context: Any) -> Message:
        # Returned, not raised: with an exception Ray would drop the trailing metadata.
        context = _Context(grpc_context, _only(request))
        with suppress(_Ended):
            response: Message = await self._call(method, once(getattr(self._servicer(), method)), context)
            return response
        return empty

    async def _call(self, method: str, answer: Answering, context: _Context) -> Any:
        if self._guard is not None:
            answer = self._guard.guarded(f"/{SERVICE}/{method}", answer)
        return await answer(None, context)

    def _servicer(self) -> RecognitionService:
        """Made by the first call, since it belongs to the event loop of the calls."""
        if self._service is None:
            settings = self._settings
            observer = Observers(AccessLog(), self._pulse)
            slots = Slots(settings.slot_count, settings.max_per_client)
            engine = Engine(self._shelf, self._pool, settings.worker_count, slots, observer)
            self._service = RecognitionService(engine, Memory(settings.memory_s), observer)
        return self._service

    def _open(self, place: str) -> OpenBundle:
        settings = self._settings
        uri = settings.tracking_uri if place.startswith(REGISTRY) else None
        opened = open_bundle(find_bundle(place, uri), settings.runtime, settings.precision, settings.threads)
        workers = settings.worker_count
        together = threading.Barrier(workers)

        def warm() -> None:
            together.wait(HEALTH_S)  # each thread takes one turn
            opened.warm_up()

        for done in [self._pool.submit(warm) for _ in range(workers)]:
            done.result()
        return opened


class _Ended(Exception):  # noqa: N818  the state, not the event
    """A call has its status."""


class _Context:
    """A call as the servicer knows it from gRPC, made of what Ray passes on."""

    def __init__(self, told: Any, requests: Any) -> None:
        self._told = told
        self._requests = requests
        self._written: asyncio.Queue[Message] = asyncio.Queue(1)  # a caller that reads slowly is read slowly

    def invocation_metadata(self) -> Any:
        return self._told.invocation_metadata()

    def auth_context(self) -> Any:
        return self._told.auth_context()

    def peer(self) -> str:
        return str(self._told.peer())

    def time_remaining(self) -> None:
        """Ray does not say."""

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Ray has none."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._told.set_trailing_metadata(list(metadata))

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        self._told.set_code(code)
        self._told.set_details(details)
        self.set_trailing_metadata(trailing)
        raise _Ended(details)

    async def read(self) -> Any:
        """The stream's next message, grpc.aio.EOF at its end."""
        return await anext(self._requests, grpc.aio.EOF)

    async def write(self, response: Message) -> None:
        await self._written.put(response)

    async def next_written(self, task: asyncio.Task[Any]) -> Message | None:
        """The next answer; None once there are none and the call has ended."""
        getting = asyncio.ensure_future(self._written.get())
        try:
            await asyncio.wait({getting, task}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            return None if self._written.empty() else self._written.get_nowait()
        finally:
            getting.cancel()


async def _only(request: Message) -> AsyncIterator[Message]:
    yield request


def _refuse(grpc_context: Any) -> None:
    grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    grpc_context.set_details("on Ray there is only grpc.health.v1.Health/Check; ask it again and again")
