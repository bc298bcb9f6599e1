"""The servicer: methods of `l2r2.v1.RecognitionService`, and admission."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from l2r2.errors import ServingError
from l2r2_serving.callers import REQUEST_ID
from l2r2_serving.calls import Calls, Context, deadline_of, log_if_ours, write
from l2r2_serving.convert import check_batch, check_item
from l2r2_serving.deadline import Deadline
from l2r2_serving.describe import describe, info
from l2r2_serving.engine import Engine
from l2r2_serving.limits import MAX_ID_CHARS
from l2r2_serving.memory import Begun, Memory, item_status, outcome
from l2r2_serving.observing import Call, Item, Observer
from l2r2_serving.reading import Unreadable
from l2r2_serving.status import FieldError
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name
"""l2r2.v1.RecognitionService"""


class RecognitionService(recognition_pb2_grpc.RecognitionServiceServicer):
    """Admits, hands to the engine, and turns errors into statuses.

    Attributes:
        calls: Of this service.
    """

    def __init__(self, engine: Engine, memory: Memory, observer: Observer) -> None:
        """Store the parts.

        Args:
            memory: What streams were answered.
        """
        self._engine = engine
        self._memory = memory
        self._observer = observer
        self.calls = Calls(SERVICE, observer)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Read no more from streams: what was accepted is answered, then they end with UNAVAILABLE."""
        self._stopping.set()

    async def Recognize(  # noqa: N802  the method's name on the wire
        self, request: pb.RecognizeRequest, context: Context
    ) -> pb.RecognizeResponse:
        """Answer one request."""
        async with self.calls.answering("Recognize", context) as call:
            with self._engine.slots.take(call.caller):
                return await self._engine.answer(request, deadline_of(context), call)
        raise AssertionError("refusing ends the call")

    async def BatchRecognize(  # noqa: N802
        self, request: pb.BatchRecognizeRequest, context: Context
    ) -> pb.BatchRecognizeResponse:
        """Answer each request of a batch, in order; one that fails does not lose the others."""
        async with self.calls.answering("BatchRecognize", context) as call:
            check_batch(request)
            self._engine.shelf.require_any()
            with self._engine.slots.take(call.caller):
                return pb.BatchRecognizeResponse(results=await self._answer_each(request, deadline_of(context), call))
        raise AssertionError("refusing ends the call")

    async def StreamRecognize(self, _requests: object, context: Context) -> None:  # noqa: N802
        """Answer each item when it is ready.

        An item is read only when the one before has a slot, so that each stream keeps one photograph waiting at most,
        and when another was answered and taken: a caller that reads slowly is read slowly.
        """
        async with self.calls.answering("StreamRecognize", context) as call:
            await context.send_initial_metadata(((REQUEST_ID, call.request_id),))
            self._engine.shelf.require_any()
            deadline = deadline_of(context)
            window, writing = asyncio.Semaphore(2 * self._engine.workers), asyncio.Lock()

            async def answer(item: pb.StreamRecognizeRequest, begun: asyncio.Event) -> None:
                response = await self._answer_item(item, deadline, call, begun.set)
                begun.set()
                async with writing:
                    await write(context, response)
                window.release()

            try:
                async with asyncio.TaskGroup() as group:
                    while await _first(window.acquire(), self._stopping.wait()):
                        item = await _first(context.read(), self._stopping.wait())
                        if isinstance(item, Unreadable):
                            raise item.error
                        if not isinstance(item, pb.StreamRecognizeRequest):
                            break
                        begun = asyncio.Event()
                        group.create_task(answer(item, begun))
                        await begun.wait()
            finally:
                deadline.gone = True  # no harm where all is answered
            if self._stopping.is_set():
                raise ServingError("the server is stopping; send what was not answered again, to another or later")

    async def GetBundle(  # noqa: N802
        self, request: pb.GetBundleRequest, context: Context
    ) -> pb.GetBundleResponse:
        """Describe a bundle."""
        async with self.calls.answering("GetBundle", context):
            return pb.GetBundleResponse(bundle=describe(self._engine.shelf.find(request.name)))
        raise AssertionError("refusing ends the call")

    async def ListBundles(  # noqa: N802
        self,
        request: pb.ListBundlesRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ListBundlesResponse:
        """Name what is served."""
        async with self.calls.answering("ListBundles", context):
            return pb.ListBundlesResponse(bundles=[info(opened) for opened in self._engine.shelf.all()])
        raise AssertionError("refusing ends the call")

    async def _answer_each(
        self, request: pb.BatchRecognizeRequest, deadline: Deadline, call: Call
    ) -> list[pb.BatchRecognizeResult]:
        results = [pb.BatchRecognizeResult() for _ in request.requests]
        waiting = iter(zip(request.requests, results, strict=True))

        async def work() -> None:
            for item, result in waiting:
                try:
                    result.response.CopyFrom(await self._engine.answer(item, deadline, call))
                except Exception as error:  # noqa: BLE001  an edge: the others of the batch must be answered
                    log_if_ours(error, call)
                    result.status.CopyFrom(item_status(error))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._engine.workers, len(results))):
                group.create_task(work())
        return results

    async def _answer_item(
        self, item: pb.StreamRecognizeRequest, deadline: Deadline, call: Call, has_slot: Begun
    ) -> pb.StreamRecognizeResponse:
        async def work(begun: Begun, deadline: Deadline) -> pb.RecognizeResponse:
            async with self._engine.slots.wait(call.caller):
                begun()
                try:
                    return await self._engine.answer(item.request, deadline, call)
                except Exception as error:
                    log_if_ours(error, call)
                    raise

        try:
            check_item(item)
            if not item.session:
                return await outcome(item.id, lambda: work(has_slot, deadline))
            # What is remembered is worth finishing: the caller comes back for it.
            response = await self._memory.answer(call.caller, item, lambda begun: work(begun, Deadline()), has_slot)
        except FieldError as error:
            return pb.StreamRecognizeResponse(id=item.id[:MAX_ID_CHARS], status=item_status(error))
        if response.replayed:
            again = Item(item.request.bundle, ended_ns=time.time_ns(), code="OK", replayed=True)
            self._observer.item(call, again)
        return response


async def _first(wanted: Any, stopping: Any) -> Any:
    """What the first gives; None where the second is sooner."""
    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(stopping)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
