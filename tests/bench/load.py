"""A bounded load from a process of its own, as JSON: `python -m tests.bench.load '{"kind": …}'`.

closed    k callers, each asks again as soon as it is answered; over gRPC to `address`
open      arrivals at `rate` a second, whatever becomes of those before: at random (Poisson, seeded), or evenly spaced
inside    as many threads as `workers` in this process, with the bundle in `bundle`: the limit of any server
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc

from l2r2 import machine
from l2r2.bundle import load_bundle
from l2r2_serving.bundles import open_bundle
from l2r2_serving.v1 import recognition_pb2 as pb
from l2r2_serving.v1 import recognition_pb2_grpc

TIMEOUT_S = 60.0


class _Record:
    """Latencies of what was answered, and how everything ended."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.codes: Counter[str] = Counter()

    async def ask(self, stub: Any, request: pb.RecognizeRequest) -> None:
        began = time.perf_counter()
        try:
            await stub.Recognize(request, timeout=TIMEOUT_S)
            self.latencies.append(time.perf_counter() - began)
            self.codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1

    def told(self, seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "latencies": sorted(self.latencies), "codes": dict(self.codes)}


async def closed(address: str, photos: list[bytes], callers: int, seconds: float, most: int) -> dict[str, Any]:
    """Until the time is over, or so many were asked."""
    record, turn = _Record(), cycle(photos)
    async with grpc.aio.insecure_channel(address, [("grpc.max_send_message_length", 2**25)]) as channel:
        stub = recognition_pb2_grpc.RecognitionServiceStub(channel)
        began, asked = time.perf_counter(), 0

        async def call() -> None:
            nonlocal asked
            while time.perf_counter() - began < seconds and asked < most:
                asked += 1
                await record.ask(stub, pb.RecognizeRequest(image=next(turn)))

        await asyncio.gather(*(call() for _ in range(callers)))
        return record.told(time.perf_counter() - began)


async def opened(address: str, photos: list[bytes], rate: float, seconds: float, seed: int | None) -> dict[str, Any]:
    """Several connections, as many callers have."""
    record, turn, rng = _Record(), cycle(photos), random.Random(seed)
    channels = [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
    stubs = cycle([recognition_pb2_grpc.RecognitionServiceStub(channel) for channel in channels])
    tasks, began, due = [], time.perf_counter(), 0.0
    while (due := due + (1 / rate if seed is None else rng.expovariate(rate))) < seconds:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(record.ask(next(stubs), pb.RecognizeRequest(image=next(turn)))))
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    for channel in channels:
        await channel.close()
    return record.told(took)


def inside(bundle: str, deployment: list[str], photos: list[bytes], workers: int, seconds: float) -> dict[str, Any]:
    """The same answers without a server, in a process that takes memory as a server does."""
    machine.settle_memory()
    found = open_bundle(load_bundle(Path(bundle)), *deployment)
    found.warm_up()
    record, lock, turn = _Record(), threading.Lock(), cycle(photos)
    began = time.perf_counter()

    def work() -> None:
        while time.perf_counter() - began < seconds:
            with lock:
                data = next(turn)
            start = time.perf_counter()
            found.answer(data, {}, 5)
            with lock:
                record.latencies.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return record.told(time.perf_counter() - began)


def main(order: dict[str, Any]) -> dict[str, Any]:
    """One load."""
    photos = [Path(path).read_bytes() for path in order["photos"]]
    if order["kind"] == "inside":
        return inside(order["bundle"], order["deployment"], photos, order["workers"], order["seconds"])
    if order["kind"] == "open":
        return asyncio.run(opened(order["address"], photos, order["rate"], order["seconds"], order["seed"]))
    most = order.get("most", 10**9)
    return asyncio.run(closed(order["address"], photos, order["callers"], order["seconds"], most))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
