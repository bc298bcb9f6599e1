"""Several server processes on one port, and the parent that keeps them."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeAlias

from l2r2 import machine
from l2r2.errors import BackendError, ConfigError, L2R2Error
from l2r2_serving.settings import ServerSettings

RESTARTS, WITHIN_S = 5, 60.0
"""So many processes may die within so many seconds; what dies more often is not cured by another start."""

MARGIN_S = 10.0
"""Beyond its own grace a process may take so long to leave, since a photograph under work is finished; then it is
killed."""

Work: TypeAlias = Callable[[ServerSettings, Callable[[str], None]], None]
"""Serves until SIGTERM; calls back with a line once it is ready. A function of a module, so that it can be sent."""

_SPAWN = multiprocessing.get_context("spawn")  # a fork would take a runtime's locks with it, but not their threads
_log = logging.getLogger(__name__)


class Processes:
    """Keeps so many server processes as the settings say; the kernel spreads new connections over them (SO_REUSEPORT).

    It helps where one process does not fill the machine: many cores and small, quick models, so that the one event loop
    or Python's lock is what callers wait for. It does not help one caller (connections are spread, not calls), nor a
    GPU, whose batches become smaller. Models, queue, limit of one caller and memory of streams are of each process: a
    stream that comes back on another is worked on again. Each looks for new versions by itself, so for a moment both
    may answer. Metrics: one port a process, counted up from the one given.

    A process that dies is started again, and listens only once it is warm. SIGTERM and SIGINT are passed on, and each
    process drains; a second one ends them at once. Should the parent itself die, its processes drain too.
    """

    def __init__(self, settings: ServerSettings, work: Work) -> None:
        """Remember them.

        Args:
            settings: Those of the whole; `workers` is of each process, None: its share of the cores.
        Raises:
            ConfigError: this system cannot share a port.
        """
        if sys.platform != "linux":
            raise ConfigError(
                f"{settings.processes} processes on one port need Linux, this is {sys.platform}; leave --processes out"
            )
        self._settings, self._work = settings, work
        self._alive: set[BaseProcess] = set()
        self._waiting = settings.processes
        self._died: deque[float] = deque()
        self._stopping = asyncio.Event()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Start them, keep them, and return when a signal has stopped them.

        Args:
            ready: Called once, with the first one's line, when all are ready.
        Raises:
            ConfigError: the address cannot be had, or as the work says.
            L2R2Error: as the work says, before all were ready.
            BackendError: they die too often.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop)
        try:
            with reserved(self._settings.host, self._settings.port) as port:
                async with asyncio.TaskGroup() as group:
                    for place in range(self._settings.processes):
                        group.create_task(self._keep(place, port, ready))
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from None
        finally:
            self._stop()
            await asyncio.to_thread(self._bury)
            for name in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(name)

    async def _keep(self, place: int, port: int, ready: Callable[[str], None]) -> None:
        first = True
        while not self._stopping.is_set():
            process, pipe = self._start(_share(self._settings, place, port))
            with pipe:
                said = await _hear(pipe)
            if isinstance(said, str) and first:
                first = False
                self._waiting -= 1
                if not self._waiting and not self._stopping.is_set():
                    ready(said)
            await _readable(process.sentinel)
            await asyncio.to_thread(process.join)  # the sentinel is a moment early
            self._alive.discard(process)
            if self._stopping.is_set():
                break
            if first:
                raise (
                    said
                    if isinstance(said, L2R2Error)
                    else BackendError(
                        f"a server process ended with {_how(process)} before it was ready; its log has the reason"
                    )
                )
            self._count(process, said)

    def _start(self, settings: ServerSettings) -> tuple[BaseProcess, Connection]:
        ours, theirs = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_serve, args=(self._work, settings, theirs), name="l2r2-server")
        process.start()
        theirs.close()  # so that its end is heard
        self._alive.add(process)
        return process, ours

    def _count(self, process: BaseProcess, said: object) -> None:
        now = time.monotonic()
        self._died.append(now)
        while now - self._died[0] > WITHIN_S:
            self._died.popleft()
        why = f": {said}" if isinstance(said, L2R2Error) else ""
        if len(self._died) > RESTARTS:
            raise BackendError(
                f"{len(self._died)} server processes died within {WITHIN_S:g} s, the last with {_how(process)}{why}; "
                "all are stopped, the log has the reasons"
            )
        _log.warning("server process %s ended with %s and is started again%s", process.pid, _how(process), why)

    def _stop(self) -> None:
        """Once: drain. Twice: end."""
        self._stopping.set()
        for process in self._alive:
            if process.is_alive():
                process.terminate()
        patience = self._settings.drain_s + self._settings.grace_s + MARGIN_S
        asyncio.get_running_loop().call_later(patience, self._kill)

    def _kill(self) -> None:
        for process in self._alive:
            process.kill()

    def _bury(self) -> None:
        """Wait for those that are left, then end them."""
        end = time.monotonic() + self._settings.drain_s + self._settings.grace_s + MARGIN_S
        for process in list(self._alive):
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
            process.join()


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Hold a port that processes of ours may share, without listening.

    Args:
        port: 0: a free one.
    Raises:
        ConfigError: it cannot be had, or others listen there.
    """
    from l2r2_serving.server import check_address

    check_address(host, port)  # alone: what others share without our knowing would be taken for ours
    with ExitStack() as stack:
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                held = stack.enter_context(socket.socket(family, kind, protocol))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held.bind((address[0], port, *address[2:]))
                port = int(held.getsockname()[1])
        except OSError as error:
            raise ConfigError(
                f"cannot share {host}:{port}: {error.strerror}; choose another --host or --port"
            ) from error
        yield port


def _share(settings: ServerSettings, place: int, port: int) -> ServerSettings:
    """What one of the processes is told."""
    metrics = settings.metrics
    if metrics is not None and metrics.port:
        metrics = metrics.model_copy(update={"port": metrics.port + place})
    return settings.model_copy(update={"port": port, "metrics": metrics})


def _serve(work: Work, settings: ServerSettings, pipe: Connection) -> None:
    """In the new process."""
    machine.settle_memory()
    os.setpgid(0, 0)  # Ctrl-C is the parent's, which passes it on
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        work(settings, pipe.send)
    except L2R2Error as error:
        try:
            pipe.send(error)
        except OSError:  # it was ready before, so nobody listens any more
            _log.error("%s", error)
        sys.exit(1)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


async def _hear(pipe: Connection) -> object:
    """What a process says of itself first: its line, or why it has none; None: it said nothing and is gone."""
    await _readable(pipe.fileno())
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(descriptor, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(descriptor)


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
