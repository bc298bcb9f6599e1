"""Work on worker threads: what is given up leaves nothing behind."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from l2r2_serving.deadline import Deadline
from l2r2_serving.engine import on_worker
from tests.serving.running import PATIENCE_S


class Photograph:
    """Something large."""


def test_what_is_cancelled_while_it_waits_is_not_kept() -> None:
    """Callers with short deadlines who ask again would otherwise fill the memory."""
    begun = []

    async def use() -> None:
        gate = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(gate.wait, PATIENCE_S)
            photograph, deadline = Photograph(), Deadline()
            kept = weakref.ref(photograph)
            waiting = asyncio.create_task(on_worker(pool, begun.append, photograph, deadline))
            del photograph
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            del waiting
            gc.collect()
            assert kept() is None
            assert deadline.gone
            assert not held.done()
            gate.set()

    asyncio.run(use())
    assert begun == []


def test_what_is_asked_is_done_and_failures_are_told() -> None:
    async def use() -> None:
        with ThreadPoolExecutor(1) as pool:
            assert await on_worker(pool, lambda given: 2 * given, 21, Deadline()) == 42
            with pytest.raises(ZeroDivisionError):
                await on_worker(pool, lambda given: given / 0, 1, Deadline())

    asyncio.run(use())
