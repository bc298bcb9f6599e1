"""A real server on loopback for a test, and a recognizer that can be held still."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc

from l2r2.bundle import Bundle
from l2r2.manifest import Deployment, Manifest
from l2r2.recognizer import Recognizer
from l2r2.types import Localizer, Pixels, Region
from l2r2_serving.client import Client
from l2r2_serving.server import RecognitionServer
from l2r2_serving.settings import ServerSettings
from l2r2_serving.v1 import recognition_pb2_grpc

PARTS = ("observer", "interceptors", "credentials", "ran")
"""Of `RecognitionServer`'s constructor."""

PATIENCE_S = 30.0
"""How long a test waits for what must happen; never a measure of speed."""


@dataclass
class Running:
    """A server in a thread of its own."""

    server: RecognitionServer
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return self.server.address

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def client(self, **options: Any) -> Client:
        return Client(self.address, **options)

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A channel that itself refuses nothing."""
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.address, options=unlimited) as channel:
            yield channel

    @contextmanager
    def stub(self) -> Iterator[recognition_pb2_grpc.RecognitionServiceStub]:
        with self.channel() as channel:
            yield recognition_pb2_grpc.RecognitionServiceStub(channel)


@contextmanager
def running(*bundles: Any, warm: bool = True, **settings: Any) -> Iterator[Running]:
    """Serve bundles on a free port until the block ends; `settings` are the server's, or parts of its constructor."""
    parts = {
        name: settings.pop(name) for name in ("observer", "interceptors", "credentials", "ran") if name in settings
    }
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server-loop")
    thread.start()
    try:
        server = RecognitionServer(ServerSettings(**{"port": 0, "workers": 2, **settings}), **parts)
        place = Running(server, loop)
        place.run(server.start())
        try:
            if warm:
                place.run(server.warm_up(*bundles))
            yield place
        finally:
            place.run(server.stop(5.0))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


def eventually(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for what must happen."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


class GatedLocalizer:
    """Locates only while its gate is open; counts the photographs that reached it."""

    key = "gated"

    def __init__(self, inner: Localizer) -> None:
        self.inner = inner
        self.gate = threading.Event()
        self.gate.set()
        self.reached = 0

    def locate(self, photos: Sequence[Pixels]) -> list[Region | None]:
        self.reached += len(photos)
        assert self.gate.wait(PATIENCE_S)
        return self.inner.locate(photos)


class BrokenLocalizer:
    """Fails on every photograph, once it is armed."""

    key = "broken"

    def __init__(self, inner: Localizer) -> None:
        self.inner = inner
        self.armed = False

    def locate(self, photos: Sequence[Pixels]) -> list[Region | None]:
        if self.armed:
            raise RuntimeError("secret: /srv/models/fg.onnx")
        return self.inner.locate(photos)


class ChangedBundle:
    """A bundle whose recognizer has another localizer."""

    def __init__(self, bundle: Bundle, localizer: type[Any]) -> None:
        self._recognizer = bundle.recognizer()
        self.localizer = localizer(self._recognizer.localizer)
        self.manifest: Manifest = bundle.manifest
        self.version = bundle.version

    def deployment(self, *_chosen: object) -> Deployment:
        return self.manifest.reference

    def recognizer(self, *_chosen: object, **_more: object) -> Recognizer:
        return replace(self._recognizer, localizer=self.localizer)
