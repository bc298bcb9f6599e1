"""A server with the KServe service alone, and requests for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from l2r2_serving.bundles import OpenBundle, Shelf
from l2r2_serving.engine import Engine
from l2r2_serving.inference import grpc_predict_v2_pb2 as pb
from l2r2_serving.inference import grpc_predict_v2_pb2_grpc
from l2r2_serving.kserve import KServeService
from l2r2_serving.limits import Slots
from l2r2_serving.observing import Call, Nobody
from tests.serving.running import PATIENCE_S

RNG = np.random.default_rng(7)
VIEWS = RNG.normal(size=(3, 3, 32, 32)).astype(np.float32)


@dataclass
class Place:
    """A server with this service alone."""

    shelf: Shelf
    slots: Slots
    calls: list[Call]
    channel: grpc.Channel

    def ask(self, method: str, request: Any, **options: Any) -> Any:
        """A call as any gRPC client makes it, the method by its public name."""
        kind = getattr(pb, f"{method}Response")
        call = self.channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}", type(request).SerializeToString, kind.FromString
        )
        return call(request, timeout=PATIENCE_S, **options)

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        return self.ask("ModelInfer", request)


@dataclass
class Listening(Nobody):
    calls: list[Call] = field(default_factory=list)

    def call(self, call: Call) -> None:
        self.calls.append(call)


@contextmanager
def serving(*opened: OpenBundle, workers: int = 2, slots: int = 8, each: int | None = None) -> Iterator[Place]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kserve-loop")
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int, Shelf, Slots, Listening, ThreadPoolExecutor]:
        shelf, free, heard = Shelf(), Slots(slots, each), Listening()
        for bundle in opened:
            shelf.put(bundle)
        pool = ThreadPoolExecutor(workers)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**25), ("grpc.so_reuseport", 0)])
        service = KServeService(shelf, Engine(shelf, pool, workers, free, heard), pool, heard)
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port, shelf, free, heard, pool

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_S)

    try:
        server, port, shelf, free, heard, pool = run(start())
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Place(shelf, free, heard.calls, channel)
        finally:
            run(server.stop(1.0))
            pool.shutdown()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


def asking(
    images: np.ndarray = VIEWS, model: str = "tiny.FG", name: str = "view", *, raw: bool = True, **fields: Any
) -> pb.ModelInferRequest:
    """A request with one tensor."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    tensor = request.inputs.add(name=name, datatype="FP32", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.fp32_contents.extend(images.ravel().tolist())
    return request


def array_of(response: pb.ModelInferResponse, place: int = 0) -> np.ndarray:
    """An output, whichever way it was sent."""
    told = response.outputs[place]
    if response.raw_output_contents:
        assert not told.HasField("contents")
        return np.frombuffer(response.raw_output_contents[place], np.float32).reshape(tuple(told.shape))
    return np.array(told.contents.fp32_contents, np.float32).reshape(tuple(told.shape))


def described(tensors: Any) -> list[tuple[str, str, list[int]]]:
    return [(each.name, each.datatype, list(each.shape)) for each in tensors]
