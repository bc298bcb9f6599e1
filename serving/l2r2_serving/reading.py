"""How a call's messages are read: late, and those that are none refused as the caller's mistake."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from l2r2.errors import DeadlinePassed, InputError, L2R2Error
from l2r2_serving.fields import check_fields
from l2r2_serving.status import DETAILS_KEY, grpc_code_of, status_of

Answering: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
"""A method that reads its messages itself: messages, context; it returns its one answer, or writes several."""

OPEN = ("/grpc.health.v1.Health/",)
"""Beginnings of methods that nobody needs a token for: whoever balances or restarts servers has none."""

OPEN_READ_S = 5.0
"""How long the message of such a call may be on its way: it has a hundred bytes, and anybody can send one."""


class Unreadable:
    """In place of a message that could not be read.

    Attributes:
        error: Why.
    """

    def __init__(self, error: InputError) -> None:
        self.error = error


class ReadingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Makes each method one of a stream of messages, which reads them itself, and refuses what is none.

    On the wire that is the same. But gRPC reads the message of a unary call before it calls anybody; so whoever stands
    before this one knows the caller's address and certificate sooner, and can refuse a message that is never read.
    A method of one answer stays one: its answer and status leave together.
    `StreamRecognize` is shown an `Unreadable`, to end as it likes.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """As gRPC calls it."""
        handler: Any = await continuation(handler_call_details)
        return None if handler is None else late(handler_call_details.method, handler)


def late(method: str, handler: Any) -> grpc.RpcMethodHandler:
    """A method's handler as one of a stream that reads its messages itself, and what is none leniently."""
    read, write = handler.request_deserializer, handler.response_serializer
    read_s = OPEN_READ_S if method.startswith(OPEN) else None
    if handler.unary_unary is not None:
        return grpc.stream_unary_rpc_method_handler(once(handler.unary_unary, read_s), _lenient(read), write)
    if handler.unary_stream is not None:
        answering = once(_writing(handler.unary_stream), read_s)
        return grpc.stream_stream_rpc_method_handler(answering, _lenient(read), write)
    if method.endswith("/StreamRecognize"):
        read = _lenient(read)
    return grpc.stream_stream_rpc_method_handler(_writing(handler.stream_stream), read, write)


def behind(door: Callable[[Answering], Answering], handler: Any) -> grpc.RpcMethodHandler:
    """A handler that `late` made, with a door before its method."""
    kind = "stream_stream" if handler.response_streaming else "stream_unary"
    return handler._replace(**{kind: door(getattr(handler, kind))})


def once(answer: Callable[[Any, Any], Awaitable[Any]], read_s: float | None = None) -> Answering:
    """A method of one message as one of a stream.

    Args:
        answer: What it does with the message, and the context.
        read_s: How long the message may be on its way, from when the call is taken; None: as long as the caller waits.
    """

    async def answering(_requests: Any, context: Any) -> Any:
        try:
            async with asyncio.timeout(read_s):
                request = await context.read()
        except TimeoutError:
            await abort(context, DeadlinePassed(f"no message within {read_s:g} s; send it with the call"))
        if isinstance(request, Unreadable):
            await abort(context, request.error)
        if request is not grpc.aio.EOF:
            return await answer(request, context)
        if getattr(context, "refusal", None) is None:  # otherwise whoever ended it says why
            await abort(context, InputError("the call has no message; expected one"))
        return None

    return answering


async def abort(context: Any, error: L2R2Error) -> None:
    """End a call with an error's status; never returns."""
    status = status_of(error)
    await context.abort(grpc_code_of(error), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _writing(answer: Callable[[Any, Any], Any]) -> Answering:
    """A method that writes its answers, of one that does, or yields them."""
    if not inspect.isasyncgenfunction(answer):
        return answer

    async def answering(asked: Any, context: Any) -> None:
        async for each in answer(asked, context):
            await context.write(each)

    return answering


def _lenient(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    descriptor = read.__self__.DESCRIPTOR  # type: ignore[attr-defined]  # of the message whose FromString it is

    def reading(data: bytes) -> Any:
        try:
            check_fields(data, descriptor)
            return read(data)
        except InputError as error:
            return Unreadable(error)
        except DecodeError:
            return Unreadable(
                InputError("the message cannot be read; expected one as the service's .proto says, whole and unchanged")
            )

    return reading
