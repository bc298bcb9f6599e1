import threading
from collections.abc import Mapping

import numpy as np
import pytest

from l2r2.errors import BackendError
from l2r2.runtimes.batching import BatchingSession

PATIENCE_S = 30.0


class Doubling:
    """Doubles; holds still while its gate is closed; remembers the size of each batch."""

    inputs = {"x": ("n", "w")}
    outputs = ("y",)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.sizes: list[int] = []

    def infer(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.sizes.append(len(feed["x"]))
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if np.isnan(feed["x"]).any():
            raise BackendError("not a number")
        return {"y": 2 * feed["x"]}


def together(session: BatchingSession, inner: Doubling, feeds: list[np.ndarray]) -> list[object]:
    """Call with each feed from a thread of its own; the first holds the device while the others gather, in order."""
    results: list[object] = [None] * len(feeds)

    def call(place: int) -> None:
        try:
            results[place] = session.infer({"x": feeds[place]})["y"]
        except BackendError as error:
            results[place] = error

    inner.gate.clear()
    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(feeds))]
    for place, thread in enumerate(threads):
        thread.start()
        if place == 0:
            assert inner.entered.acquire(timeout=PATIENCE_S)
        else:
            while len(session._gathered) < place:
                threading.Event().wait(0.001)
    inner.gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    return results


def rows(*counts: int, width: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(count, width)).astype(np.float32) for count in counts]


def test_what_gathers_runs_together_and_each_gets_its_own():
    inner, feeds = Doubling(), rows(1, 2, 1, 1, 4, 1)
    results = together(BatchingSession(inner, 4), inner, feeds)
    for feed, result in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(result, 2 * feed)
    assert inner.sizes == [1, 4, 4, 1]


def test_one_caller_alone_never_waits():
    inner = Doubling()
    session = BatchingSession(inner, 8)
    for feed in rows(1, 3):
        np.testing.assert_array_equal(session.infer({"x": feed})["y"], 2 * feed)
    assert inner.sizes == [1, 3]
    assert (session.inputs, session.outputs) == (inner.inputs, inner.outputs)


def test_a_call_larger_than_the_largest_runs_as_it_is():
    inner = Doubling()
    (feed,) = rows(9)
    np.testing.assert_array_equal(BatchingSession(inner, 4).infer({"x": feed})["y"], 2 * feed)
    assert inner.sizes == [9]


def test_other_shapes_and_types_do_not_mix():
    inner = Doubling()
    feeds = [*rows(1, 1), *rows(1, width=5), rows(1)[0].astype(np.float64), *rows(1)]
    results = together(BatchingSession(inner, 8), inner, feeds)
    for feed, result in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(result, 2 * feed)
    assert inner.sizes == [1, 1, 1, 1, 1]


def test_an_error_reaches_each_call_of_its_batch_and_no_other():
    inner, feeds = Doubling(), rows(1, 1, 1, 1)
    feeds[2][:] = np.nan
    results = together(BatchingSession(inner, 2), inner, feeds)
    assert isinstance(results[1], BackendError)
    assert isinstance(results[2], BackendError)
    np.testing.assert_array_equal(results[0], 2 * feeds[0])
    np.testing.assert_array_equal(results[3], 2 * feeds[3])


@pytest.mark.parametrize("largest", [1, 3, 8])
def test_many_threads_all_get_their_own(largest: int):
    inner = Doubling()
    session = BatchingSession(inner, largest)
    wrong = []

    def call(number: int) -> None:
        for turn in range(40):
            feed = np.full((1 + turn % 2, 3), number * 100 + turn, np.float32)
            if not np.array_equal(session.infer({"x": feed})["y"], 2 * feed):
                wrong.append((number, turn))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []
    assert sum(inner.sizes) == 8 * (20 + 40)
