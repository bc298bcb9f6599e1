"""What surrounds each call of a servicer: its record, and a status where anything goes wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

from l2r2.errors import ServingError
from l2r2_serving.callers import REQUEST_ID, begun
from l2r2_serving.deadline import Deadline
from l2r2_serving.guarding import GuardedStream
from l2r2_serving.observing import Call, Observer
from l2r2_serving.status import DETAILS_KEY, grpc_code_of, status_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)


class Vanished(Exception):  # noqa: N818  the state, not the event
    """The caller is gone, with answers that it did not take; never leaves the service."""


class Calls:
    """The calls of one service."""

    def __init__(self, service: str, observer: Observer) -> None:
        """Store the parts.

        Args:
            service: Its full name on the wire.
            observer: Told of each call once it has ended.
        """
        self._service, self._observer = service, observer

    @asynccontextmanager
    async def answering(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Answer a call inside: an error ends it with its status, and whoever watches is told in any case.

        The request's id goes with the status: sent sooner it would be a message of its own.
        """
        call = begun(f"{self._service}/{method}", context)
        named = (REQUEST_ID, call.request_id)
        context.set_trailing_metadata((named,))
        call.code = "OK"
        try:
            yield call
            if isinstance(context, GuardedStream) and context.refusal is not None:
                call.code = grpc_code_of(context.refusal).name  # the interceptor will end it so
        except asyncio.CancelledError:
            call.code = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001  an edge: whatever happens, the caller gets a status
            reason = _first(error)
            if isinstance(reason, Vanished):
                call.code = "CANCELLED"
                raise asyncio.CancelledError from None
            code, status = grpc_code_of(reason), status_of(reason)
            call.code = code.name
            log_if_ours(error, call)
            await context.abort(code, status.message, (named, (DETAILS_KEY, status.SerializeToString())))
        finally:
            call.ended_ns = time.time_ns()
            self._observer.call(call)


async def write(context: Context, response: Any) -> None:
    """Send one answer of a stream.

    Raises:
        Vanished: the caller takes no more.
    """
    try:
        await context.write(response)
    except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
        raise Vanished from error


def deadline_of(context: Context) -> Deadline:
    """How long the caller waits."""
    left = context.time_remaining()
    return Deadline(None if left is None else time.monotonic() + float(left))


def log_if_ours(error: Exception, call: Call) -> None:
    """A caller's mistake is not logged; ours is, with its traceback and nothing of what was sent."""
    if grpc_code_of(_first(error)) is grpc.StatusCode.INTERNAL:
        _log.error("request %s failed: %s", call.request_id, type(error).__name__, exc_info=error)


def _first(error: Exception) -> Exception:
    """Of a task group's errors the first."""
    reasons = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
    return next((each for each in reasons if isinstance(each, Exception)), ServingError("stopped"))
