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

Answering: TypeAlias = Callable[[Any, Any], Awaitable[None]]
"""A method as one of streams both ways: messages, context; it writes its answers."""

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
    """Makes each method one of streams both ways, which reads its messages itself, and refuses what is none.

    On the wire that is the same. But gRPC reads the message of a unary call before it calls anybody; so whoever stands
    before this one knows the caller's address and certificate sooner, and can refuse a message that is never read.
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
    """A method's handler as one of streams both ways that reads its messages itself, and what is none leniently."""
    answering, read = handler.stream_stream, handler.request_deserializer
    if answering is None:
        answering = once(handler.unary_unary or handler.unary_stream, OPEN_READ_S if method.startswith(OPEN) else None)
    elif inspect.isasyncgenfunction(answering):
        answering = _writing(answering)
    if handler.stream_stream is None or method.endswith("/StreamRecognize"):
        read = _lenient(read)
    return grpc.stream_stream_rpc_method_handler(answering, read, handler.response_serializer)


def once(answer: Callable[[Any, Any], Any], read_s: float | None = None) -> Answering:
    """A method of one message as one of streams.

    Args:
        answer: What it does with the message, and the context.
        read_s: How long the message may be on its way, from when the call is taken; None: as long as the caller waits.
    """

    answering_one = _writing(answer)

    async def answering(_requests: Any, context: Any) -> None:
        try:
            async with asyncio.timeout(read_s):
                request = await context.read()
        except TimeoutError:
            await abort(context, DeadlinePassed(f"no message within {read_s:g} s; send it with the call"))
        if isinstance(request, Unreadable):
            await abort(context, request.error)
        if request is not grpc.aio.EOF:
            await answering_one(request, context)
        elif getattr(context, "refusal", None) is None:  # otherwise whoever ended it says why
            await abort(context, InputError("the call has no message; expected one"))

    return answering


async def abort(context: Any, error: L2R2Error) -> None:
    """End a call with an error's status; never returns."""
    status = status_of(error)
    await context.abort(grpc_code_of(error), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _writing(answer: Callable[[Any, Any], Any]) -> Answering:
    """A method that writes its answers, of one that returns or yields them."""

    async def answering(asked: Any, context: Any) -> None:
        if inspect.isasyncgenfunction(answer):
            async for each in answer(asked, context):
                await context.write(each)
        elif (response := await answer(asked, context)) is not None:
            await context.write(response)

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
