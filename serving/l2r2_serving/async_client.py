"""The Python client for asyncio; as `client.Client`, each method awaited."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from l2r2.errors import InputError, L2R2Error
from l2r2.types import Metadata
from l2r2_serving.answer import Answer, Options
from l2r2_serving.calling import TIMEOUT_S, WINDOW, Card, Reach, Retries, Streamed, Trying, to_card, to_streamed
from l2r2_serving.client import DEFAULTS, RETRIES, result_of
from l2r2_serving.convert import to_answer, to_request
from l2r2_serving.limits import DEFAULT_TOP_K, MAX_MESSAGE_MB
from l2r2_serving.queueing import check_new
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc

Response = TypeVar("Response", bound=Message)
Photo = tuple[str, bytes, Metadata]


class AsyncClient:
    """Recognizes photographs on a server; an asynchronous context manager, of one event loop."""

    def __init__(
        self,
        server: str,
        *,
        bundle: str = "",
        timeout_s: float = TIMEOUT_S,
        max_message_mb: int = MAX_MESSAGE_MB,
        tls: Path | bool | None = None,
        certificate: tuple[Path, Path] | None = None,
        token: str | None = None,
        retries: Retries = RETRIES,
    ) -> None:
        """Prepare, in the event loop; all as `client.Client`."""
        self._reach = Reach(server, max_message_mb, tls, certificate, token)
        self._bundle, self._timeout_s, self._retries = bundle, timeout_s, retries
        safe = self._reach.credentials()
        options = self._reach.options()
        self._channel = (
            grpc.aio.insecure_channel(server, options)
            if safe is None
            else grpc.aio.secure_channel(server, safe, options)
        )
        self._stub: Any = recognition_pb2_grpc.RecognitionServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; calls in flight are cancelled."""
        await self._channel.close()

    async def recognize(
        self,
        data: bytes,
        metadata: Metadata | None = None,
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
        options: Options = DEFAULTS,
    ) -> Answer:
        """As `Client.recognize`."""
        request = to_request(data, metadata or {}, top_k, self._bundle, options)
        return to_answer(await self._call(self._stub.Recognize, request, timeout_s))

    async def recognize_batch(
        self,
        photos: Sequence[bytes],
        metadata: Sequence[Metadata] | None = None,
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
        options: Options = DEFAULTS,
    ) -> list[Answer | L2R2Error]:
        """As `Client.recognize_batch`, but that metadata which cannot be sent are raised."""
        known = [{}] * len(photos) if metadata is None else metadata
        if len(known) != len(photos):
            raise InputError(f"{len(photos)} photographs but {len(known)} metadata; expected as many of each")
        requests = [
            to_request(data, values, top_k, self._bundle, options) for data, values in zip(photos, known, strict=True)
        ]
        batch = pb.BatchRecognizeRequest(requests=requests)
        return [result_of(each) for each in (await self._call(self._stub.BatchRecognize, batch, timeout_s)).results]

    async def recognize_stream(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
        options: Options = DEFAULTS,
    ) -> AsyncIterator[Streamed]:
        """As `Client.recognize_stream`."""
        stream = _Stream(photos, lambda data, known: to_request(data, known, top_k, self._bundle, options), self._reach)
        trying = Trying(self._reach, self._retries, timeout_s)
        while not stream.done:
            call = self._stub.StreamRecognize(timeout=trying.left_s(), metadata=self._reach.metadata())
            sending = asyncio.create_task(stream.send(call))
            try:
                async for response in call:
                    if (streamed := stream.answered(response)) is not None:
                        trying.progressed()
                        yield streamed
                await sending
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(trying.wait_s(error))
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                call.cancel()
        if stream.failure is not None:
            raise stream.failure

    async def bundle(self, name: str | None = None, timeout_s: float | None = None) -> Card:
        """As `Client.bundle`."""
        request = pb.GetBundleRequest(name=self._bundle if name is None else name)
        return to_card((await self._call(self._stub.GetBundle, request, timeout_s)).bundle)

    async def bundles(self, timeout_s: float | None = None) -> dict[str, str]:
        """As `Client.bundles`."""
        response = await self._call(self._stub.ListBundles, pb.ListBundlesRequest(), timeout_s)
        return {each.name: each.version for each in response.bundles}

    async def _call(self, method: Callable[..., Any], request: Message, timeout_s: float | None) -> Any:
        self._reach.check_size(request.ByteSize())
        trying = Trying(self._reach, self._retries, self._timeout_s if timeout_s is None else timeout_s)
        metadata = self._reach.metadata()
        while True:
            try:
                return await method(request, timeout=trying.left_s(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(trying.wait_s(error))


class _Stream:
    """A queue in one session, as `queueing.Queueing`, in one event loop."""

    def __init__(
        self,
        photos: Iterable[Photo] | AsyncIterable[Photo],
        to_request: Callable[[bytes, Metadata], pb.RecognizeRequest],
        reach: Reach,
    ) -> None:
        self._photos = aiter(photos) if isinstance(photos, AsyncIterable) else _each(photos)
        self._to_request, self._reach, self._session = to_request, reach, uuid.uuid4().hex
        self._unanswered: dict[str, pb.StreamRecognizeRequest] = {}
        self._exhausted = False
        self._room = asyncio.Event()
        self._taking: asyncio.Task[pb.StreamRecognizeRequest | None] | None = None
        self.failure: Exception | None = None

    @property
    def done(self) -> bool:
        return self._exhausted and not self._unanswered

    async def send(self, call: Any) -> None:
        """Over one connection: what was not answered, then what comes, as far as the window reaches."""
        try:
            for again in list(self._unanswered.values()):
                await call.write(again)
            while not self._exhausted:
                while len(self._unanswered) >= WINDOW:
                    self._room.clear()
                    await self._room.wait()
                self._taking = self._taking or asyncio.create_task(self._taken())
                item = await asyncio.shield(self._taking)  # a broken connection may not end the queue itself
                self._taking = None
                if item is not None:
                    self._unanswered[item.id] = item
                    await call.write(item)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # whoever reads hears the reason

    def answered(self, response: pb.StreamRecognizeResponse) -> Streamed | None:
        known = self._unanswered.pop(response.id, None)
        self._room.set()
        return None if known is None else to_streamed(response)

    async def _taken(self) -> pb.StreamRecognizeRequest | None:
        try:
            name, data, metadata = await anext(self._photos)
            check_new(name, self._unanswered)
            request = self._to_request(data, metadata)
            self._reach.check_size(request.ByteSize())
        except StopAsyncIteration:
            self._exhausted = True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we, but something that the queue waited for was cancelled: the queue is broken.
            self.failure, self._exhausted = InputError("the queue of photographs was cancelled"), True
        except Exception as error:  # noqa: BLE001  those before it are answered first
            self.failure, self._exhausted = error, True
        else:
            return pb.StreamRecognizeRequest(id=name, session=self._session, request=request)
        return None


async def _each(photos: Iterable[Photo]) -> AsyncIterator[Photo]:
    for photo in photos:
        yield photo
