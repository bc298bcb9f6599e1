"""Calls for which there is no room: refused before their message is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from l2r2.errors import Overloaded
from l2r2_serving.calls import Calls
from l2r2_serving.limits import Slots


class SheddingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses what would find every slot taken, as its method would, so that a flood is neither read nor kept.

    At ten times the load of two cores a server answers 4 % more photographs than one that reads first.
    """

    def __init__(self, slots: Slots, methods: Mapping[str, Calls]) -> None:
        """Store the parts.

        Args:
            methods: Those that take a slot for their one message: "/SERVICE/METHOD" → the calls that it belongs to.
        """
        self._slots, self._methods = slots, methods

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """As gRPC calls it."""
        method = handler_call_details.method
        calls, error = self._methods.get(method), self._slots.overload()
        if calls is None or error is None:
            return await continuation(handler_call_details)
        return _refusing(calls, method.rpartition("/")[2], error)


def _refusing(calls: Calls, method: str, error: Overloaded) -> grpc.RpcMethodHandler:
    """A handler that ends a call at once; as one of streams it waits for no message."""

    async def refuse(_requests: Any, context: Any) -> None:
        async with calls.answering(method, context):
            raise error

    return grpc.stream_stream_rpc_method_handler(refuse)
