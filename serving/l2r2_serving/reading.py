"""Messages that are none: refused as the caller's mistake, where gRPC would report a failure of ours and log it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from l2r2.errors import InputError
from l2r2_serving.status import DETAILS_KEY, status_of


class Unreadable:
    """In place of a message that could not be read."""

    error = InputError("the message cannot be read; expected one as the service's .proto says, whole and unchanged")


class ReadingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Reads a call's messages, and refuses a unary call whose message is none; a stream's handler sees `Unreadable`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """As gRPC calls it."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read = _lenient(handler.request_deserializer)
        if handler.unary_unary is not None:
            return handler._replace(request_deserializer=read, unary_unary=_refusing(handler.unary_unary))
        if handler.stream_stream is not None and handler_call_details.method.endswith("/StreamRecognize"):
            return handler._replace(request_deserializer=read)
        return handler


def _lenient(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def reading(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return Unreadable()

    return reading


def _refusing(answer: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answering(request: Any, context: Any) -> Any:
        if isinstance(request, Unreadable):
            status = status_of(request.error)
            details = ((DETAILS_KEY, status.SerializeToString()),)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message, details)
        return await answer(request, context)

    return answering
