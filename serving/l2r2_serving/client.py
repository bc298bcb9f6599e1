"""A Python client: bytes in, answers out, errors as exceptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from l2r2.errors import DeadlinePassed, InputError, L2R2Error, MetadataError, ServingError
from l2r2.types import Metadata
from l2r2_serving.answer import Answer
from l2r2_serving.convert import to_answer, to_request
from l2r2_serving.limits import DEFAULT_TOP_K, MAX_MESSAGE_MB
from l2r2_serving.status import error_of, read_details
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc

TIMEOUT_S = 30.0
"""How long a caller waits unless it says otherwise; a queue's worth of photographs on a small device."""


Response = TypeVar("Response", bound=Message)


class Client:
    """Recognizes photographs on a server. A context manager; threads may share it.

    >>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
    ...     answer = client.recognize(Path("photo.jpg").read_bytes(), {"habitat": "oak forest", "month": "9"})
    """

    def __init__(
        self, server: str, *, bundle: str = "", timeout_s: float = TIMEOUT_S, max_message_mb: int = MAX_MESSAGE_MB
    ) -> None:
        """Prepare; the connection is made by the first call.

        Args:
            server: HOST:PORT.
            bundle: Name of the bundle to ask; empty: the only one that is served.
            timeout_s: Of a call that names none.
            max_message_mb: MiB of a message either way; the server's limit counts as well.
        """
        self._server = server
        self._bundle = bundle
        self._timeout_s = timeout_s
        self._limit = max_message_mb * 2**20
        self._channel = grpc.insecure_channel(
            server,
            options=[
                ("grpc.max_send_message_length", self._limit),
                ("grpc.max_receive_message_length", self._limit),
            ],
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
        self, data: bytes, metadata: Metadata | None = None, top_k: int = DEFAULT_TOP_K, timeout_s: float | None = None
    ) -> Answer:
        """Recognize one encoded photograph.

        Args:
            metadata: As `l2r2.types.make_metadata` gives it.
            top_k: Candidates wanted, 1 to 100.
            timeout_s: How long to wait; None: the client's.
        Raises:
            ImageError, MetadataError, InputError: what was sent cannot be used.
            Overloaded: no room; try again in a second.
            DeadlinePassed: no answer in time.
            UnknownBundle, NotReady: nothing of that name is served, or nothing yet.
            ServingError: the server cannot be reached, or is stopping.
            BackendError: it failed.
        """
        request = to_request(data, metadata or {}, top_k, self._bundle)
        return to_answer(self._call(self._stub.Recognize, request, timeout_s))

    def recognize_batch(
        self,
        photos: Sequence[bytes],
        metadata: Sequence[Metadata] | None = None,
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
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
                requests.append(to_request(data, values, top_k, self._bundle))
            except MetadataError as error:
                results[place] = error
        response = self._call(self._stub.BatchRecognize, pb.BatchRecognizeRequest(requests=requests), timeout_s)
        heard = iter(response.results)
        return [_result(next(heard)) if result is None else result for result in results]

    def _call(self, method: Callable[..., Response], request: Message, timeout_s: float | None) -> Response:
        size = request.ByteSize()
        if size > self._limit:
            raise InputError(
                f"the request has {size:,} bytes; at most {self._limit:,} are sent: shrink the photographs, send "
                "fewer, or raise the limit here and on the server"
            )
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self._meaning(error, timeout) from error

    def _meaning(self, error: grpc.RpcError, timeout_s: float) -> L2R2Error:
        code, message = error.code(), error.details() or ""
        trailing = [(item.key, item.value) for item in error.trailing_metadata() or ()]
        status = read_details(code, message, trailing)
        if not status.details and code is grpc.StatusCode.UNAVAILABLE:
            return ServingError(f"{self._server} cannot be reached ({message}); is `l2r2 serve` running there?")
        if not status.details and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlinePassed(
                f"{self._server} gave no answer within {timeout_s:g} s; give more time, or ask less at once"
            )
        return error_of(status)


def _result(result: pb.BatchRecognizeResult) -> Answer | L2R2Error:
    if result.WhichOneof("result") == "response":
        return to_answer(result.response)
    return error_of(status_pb2.Status.FromString(result.status.SerializeToString()))
