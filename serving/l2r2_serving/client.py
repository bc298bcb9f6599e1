"""A Python client: bytes in, answers out, errors as exceptions. `async_client` has the same for asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from l2r2.errors import InputError, L2R2Error, MetadataError
from l2r2.types import Metadata
from l2r2_serving.answer import Answer, Options
from l2r2_serving.calling import TIMEOUT_S, Card, Reach, Retries, Streamed, Trying, item_error, to_card
from l2r2_serving.convert import to_answer, to_request
from l2r2_serving.limits import DEFAULT_TOP_K, MAX_MESSAGE_MB
from l2r2_serving.queueing import Queueing
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc

Response = TypeVar("Response", bound=Message)

DEFAULTS = Options()
RETRIES = Retries()


class Client:
    """Recognizes photographs on a server. A context manager; threads may share it.

    >>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
    ...     answer = client.recognize(Path("photo.jpg").read_bytes(), {"habitat": "oak forest", "month": "9"})
    """

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
        """Prepare; the connection is made by the first call.

        Args:
            server, max_message_mb, tls, certificate, token: As `calling.Reach`.
            bundle: Name of the bundle to ask; empty: the only one that is served.
            timeout_s: Of a call that names none, its retries included.
            retries: Of calls that another try may heal: a server that is away, or full.
        Raises:
            ConfigError: a file cannot be read, or a token would travel as plain text.
        """
        self._reach = Reach(server, max_message_mb, tls, certificate, token)
        self._bundle, self._timeout_s, self._retries = bundle, timeout_s, retries
        safe = self._reach.credentials()
        options = self._reach.options()
        self._channel = (
            grpc.insecure_channel(server, options) if safe is None else grpc.secure_channel(server, safe, options)
        )
        self._stub = recognition_pb2_grpc.RecognitionServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; calls in flight are cancelled."""
        self._channel.close()

    def recognize(
        self,
        data: bytes,
        metadata: Metadata | None = None,
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
        options: Options = DEFAULTS,
    ) -> Answer:
        """Recognize one encoded photograph.

        Args:
            metadata: As `l2r2.types.make_metadata` gives it.
            top_k: Candidates wanted, 1 to 100.
            timeout_s: How long to wait; None: the client's.
        Raises:
            ImageError, MetadataError, InputError: what was sent cannot be used.
            UnknownBundle, NotReady, Unauthenticated, NotAllowed, Overloaded, DeadlinePassed, ServingError: the server
                does not answer this now.
            BackendError: it failed.
        """
        request = to_request(data, metadata or {}, top_k, self._bundle, options)
        return to_answer(self._call(self._stub.Recognize, request, timeout_s))

    def recognize_batch(
        self,
        photos: Sequence[bytes],
        metadata: Sequence[Metadata] | None = None,
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
        options: Options = DEFAULTS,
    ) -> list[Answer | L2R2Error]:
        """Recognize several encoded photographs in one call.

        Args:
            photos: At most 64, and all of them within one message's limit.
            metadata: One a photograph; None: nothing is known of any.
        Returns:
            In order: the answer, or the error that `recognize` would have raised for that photograph.
        Raises:
            As `recognize`, for what concerns the whole call; InputError also for too many photographs or for metadata
            of another number.
        """
        if metadata is not None and len(metadata) != len(photos):
            raise InputError(f"{len(photos)} photographs but {len(metadata)} metadata; expected as many of each")
        known: Sequence[Metadata] = [{}] * len(photos) if metadata is None else metadata
        results: list[Answer | L2R2Error | None] = [None] * len(photos)
        requests = []
        for place, (data, values) in enumerate(zip(photos, known, strict=True)):
            try:
                requests.append(to_request(data, values, top_k, self._bundle, options))
            except MetadataError as error:
                results[place] = error
        response = self._call(self._stub.BatchRecognize, pb.BatchRecognizeRequest(requests=requests), timeout_s)
        heard = iter(response.results)
        return [result_of(next(heard)) if result is None else result for result in results]

    def recognize_stream(
        self,
        photos: Iterable[tuple[str, bytes, Metadata]],
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
        options: Options = DEFAULTS,
    ) -> Iterator[Streamed]:
        """Recognize a queue of any length: each result comes when it is ready, not in order.

        Photographs are taken from the queue as the server answers. After a broken connection what was not answered is
        sent again; the server answers from memory what it had done, so each is worked on once and told once.

        Args:
            photos: The caller's own name for each, another for each photograph; its bytes; what is known of it.
            timeout_s: For the whole queue; None: as long as it takes.
        Raises:
            InputError, MetadataError: a photograph that cannot be sent; those before it are answered first.
            DeadlinePassed: not all was answered in time; each photograph that was has been told.
            Others: as `recognize`, for what concerns the whole call and stays so in all tries.
        """
        queueing = Queueing(
            photos, lambda data, known: to_request(data, known, top_k, self._bundle, options), self._reach
        )
        trying = Trying(self._reach, self._retries, timeout_s)
        while not queueing.done:
            call = self._stub.StreamRecognize(
                queueing.requests(), timeout=trying.left_s(), metadata=self._reach.metadata()
            )
            try:
                for response in call:
                    if (streamed := queueing.answered(response)) is not None:
                        trying.progressed()
                        yield streamed
            except grpc.RpcError as error:
                queueing.broken()
                time.sleep(trying.wait_s(error))
            finally:
                queueing.broken()
                call.cancel()
        queueing.check()

    def bundle(self, name: str | None = None, timeout_s: float | None = None) -> Card:
        """Ask what a bundle is and knows.

        Args:
            name: None: the client's own.
        Raises:
            As `recognize`.
        """
        request = pb.GetBundleRequest(name=self._bundle if name is None else name)
        return to_card(self._call(self._stub.GetBundle, request, timeout_s).bundle)

    def bundles(self, timeout_s: float | None = None) -> dict[str, str]:
        """Name → version of what is served.

        Raises:
            As `recognize`.
        """
        response = self._call(self._stub.ListBundles, pb.ListBundlesRequest(), timeout_s)
        return {each.name: each.version for each in response.bundles}

    def _call(self, method: Callable[..., Response], request: Message, timeout_s: float | None) -> Response:
        self._reach.check_size(request.ByteSize())
        trying = Trying(self._reach, self._retries, self._timeout_s if timeout_s is None else timeout_s)
        metadata = self._reach.metadata()
        while True:
            try:
                return method(request, timeout=trying.left_s(), metadata=metadata)
            except grpc.RpcError as error:
                time.sleep(trying.wait_s(error))


def result_of(result: pb.BatchRecognizeResult) -> Answer | L2R2Error:
    """What became of one photograph of a batch."""
    if result.WhichOneof("result") == "response":
        return to_answer(result.response)
    return item_error(result.status)
