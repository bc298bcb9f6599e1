"""The servicer: from a message to an answer, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

from l2r2.errors import DeadlinePassed, ImageError
from l2r2_serving.bundles import OpenBundle, Shelf
from l2r2_serving.convert import check_batch, read_metadata, read_top_k, to_response
from l2r2_serving.limits import Slots
from l2r2_serving.status import DETAILS_KEY, FieldError, code_of, naming, status_of
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name
"""l2r2.v1.RecognitionService"""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)


class RecognitionService(recognition_pb2_grpc.RecognitionServiceServicer):
    """Admits, hands to a worker thread, and turns errors into statuses.

    A request that is cancelled, or whose deadline passes, while it waits for a worker is never worked on: the event
    loop cancels its future, and the worker asks the clock before it starts.
    """

    def __init__(self, shelf: Shelf, pool: Executor, workers: int, slots: Slots) -> None:
        """Store the parts.

        Args:
            pool: Where photographs are decoded and recognized.
            workers: Threads of the pool; a batch never waits with more of its requests than that, so that it does not
                shut out other callers.
            slots: One a call in flight.
        """
        self._shelf = shelf
        self._pool = pool
        self._workers = workers
        self._slots = slots

    async def Recognize(  # noqa: N802  the method's name on the wire
        self, request: pb.RecognizeRequest, context: Context
    ) -> pb.RecognizeResponse:
        """Answer one request."""
        async with _refusing(context):
            with self._slots.take():
                return await self._answer(request, _deadline(context))
        raise AssertionError("refusing ends the call")

    async def BatchRecognize(  # noqa: N802
        self, request: pb.BatchRecognizeRequest, context: Context
    ) -> pb.BatchRecognizeResponse:
        """Answer each request of a batch, in order; one that fails does not lose the others."""
        async with _refusing(context):
            check_batch(request)
            self._shelf.require_any()
            with self._slots.take():
                return pb.BatchRecognizeResponse(results=await self._answer_each(request, _deadline(context)))
        raise AssertionError("refusing ends the call")

    async def _answer_each(
        self, request: pb.BatchRecognizeRequest, deadline: float | None
    ) -> list[pb.BatchRecognizeResult]:
        results = [pb.BatchRecognizeResult() for _ in request.requests]
        waiting = iter(zip(request.requests, results, strict=True))

        async def work() -> None:
            for item, result in waiting:
                await self._answer_into(result, item, deadline)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._workers, len(results))):
                group.create_task(work())
        return results

    async def _answer_into(
        self, result: pb.BatchRecognizeResult, request: pb.RecognizeRequest, deadline: float | None
    ) -> None:
        try:
            result.response.CopyFrom(await self._answer(request, deadline))
        except Exception as error:  # noqa: BLE001  an edge: the others of the batch must be answered
            status = status_of(error)
            _log_if_ours(error)
            result.status.MergeFromString(status.SerializeToString())

    async def _answer(self, request: pb.RecognizeRequest, deadline: float | None) -> pb.RecognizeResponse:
        opened = self._shelf.find(request.bundle)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, recognize_before, deadline, opened, request)


def recognize_before(deadline: float | None, opened: OpenBundle, request: pb.RecognizeRequest) -> pb.RecognizeResponse:
    """Answer a request, in a worker thread.

    Args:
        deadline: Of `time.monotonic`; None: the caller waits for ever.
    Raises:
        DeadlinePassed: before anything was begun.
        FieldError: a field cannot be used.
        BackendError: a model failed.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlinePassed("the deadline passed before a worker was free; nothing was done, give more time")
    metadata, top_k = read_metadata(request), read_top_k(request)
    with naming("image", ImageError):
        return to_response(opened.answer(request.image, metadata, top_k))


@asynccontextmanager
async def _refusing(context: Context) -> AsyncIterator[None]:
    """End the call with a status if anything goes wrong inside."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  an edge: whatever happens, the caller gets a status
        status = status_of(error)
        _log_if_ours(error)
        codes = {code.value[0]: code for code in grpc.StatusCode}
        await context.abort(codes[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _log_if_ours(error: Exception) -> None:
    """A caller's mistake is not logged; ours is, with its traceback and nothing of what was sent."""
    if not isinstance(error, FieldError) and code_of(type(error)) is grpc.StatusCode.INTERNAL:
        _log.error("a request failed: %s", type(error).__name__, exc_info=error)


def _deadline(context: Context) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + float(left)
