"""From a request to an answer, off the event loop: admission, a worker thread, and nothing done for who has left."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from l2r2.errors import ImageError, InputError
from l2r2.types import Metadata
from l2r2_serving.answer import Answer, Options
from l2r2_serving.bundles import OpenBundle, Shelf
from l2r2_serving.convert import read_metadata, read_options, read_top_k, to_response
from l2r2_serving.deadline import Deadline
from l2r2_serving.limits import Slots
from l2r2_serving.observing import Call, Item, Observer
from l2r2_serving.status import FieldError, grpc_code_of, naming
from l2r2_serving.v1 import recognition_pb2 as pb

Given = TypeVar("Given")
T = TypeVar("T")


class Engine:
    """Where photographs are answered. Belongs to one event loop.

    A request that is cancelled, or whose deadline passes, while it waits for a worker is never worked on; one that is
    being worked on stops before its next step.

    Attributes:
        shelf: What is served.
        slots: One a call in flight; a stream takes one a photograph.
        workers: Threads of the pool; nobody waits with more photographs than that at once, so that a batch or a stream
            does not shut out other callers.
    """

    def __init__(self, shelf: Shelf, pool: Executor, workers: int, slots: Slots, observer: Observer) -> None:
        self.shelf = shelf
        self.slots = slots
        self.workers = workers
        self._pool = pool
        self._observer = observer

    async def answer(self, request: pb.RecognizeRequest, deadline: Deadline, call: Call) -> pb.RecognizeResponse:
        """Answer one request; whoever calls holds a slot.

        Raises:
            FieldError: a field cannot be used.
            NotReady, UnknownBundle: nothing of that name is served.
            DeadlinePassed: nobody waits any more.
            BackendError: a model failed.
        """
        item = Item(request.bundle)
        try:
            opened = self.shelf.find(request.bundle)
            item.bundle = opened.name
            metadata, top_k, options = read_metadata(request), read_top_k(request), read_options(request)
            accepted = time.monotonic()

            def work(image: bytes) -> pb.RecognizeResponse:
                item.queued_s = time.monotonic() - accepted
                item.answer = recognize(opened, image, metadata, top_k, options, deadline)
                return to_response(item.answer)

            response = await on_worker(self._pool, work, request.image, deadline)
            item.code = "OK"
        except asyncio.CancelledError:
            item.code = "CANCELLED"
            raise
        except Exception as error:
            item.code = grpc_code_of(error).name
            raise
        finally:
            item.ended_ns = time.time_ns()
            self._observer.item(call, item)
        return response


async def on_worker(pool: Executor, work: Callable[[Given], T], given: Given, deadline: Deadline) -> T:
    """Do work on a worker thread.

    Whoever is cancelled leaves nothing behind: work that waits is never begun, and what it was given is not kept in the
    queue until its turn comes; work that has begun finds its deadline gone.

    Raises:
        As `work`.
    """
    held = deque([given])

    def begin() -> T:
        return work(held.pop())

    try:
        return await asyncio.get_running_loop().run_in_executor(pool, begin)
    except asyncio.CancelledError:
        deadline.gone = True
        held.clear()
        raise


def recognize(
    opened: OpenBundle, image: bytes, metadata: Metadata, top_k: int, options: Options, deadline: Deadline
) -> Answer:
    """As `OpenBundle.answer`, an error of the caller's named by its field.

    Raises:
        FieldError: the photograph or the box cannot be used.
        DeadlinePassed, BackendError: as there.
    """
    field = "box_normalized" if options.box_normalized else "box_px" if options.box is not None else "image"
    try:
        with naming("image", ImageError):
            return opened.answer(image, metadata, top_k, options, deadline)
    except InputError as error:
        raise FieldError(field, error) from error
