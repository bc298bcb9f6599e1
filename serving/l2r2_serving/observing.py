"""What the service tells whoever watches it: one record a photograph, one a call, nothing of what was sent."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Protocol

from l2r2_serving.answer import Answer

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One call of a method. Two are never equal, so observers may keep things by call, weakly.

    Attributes:
        method: Its full name on the wire, such as l2r2.v1.RecognitionService/Recognize.
        caller: Who called: a token's or certificate's name, else an address.
        request_id: The caller's own, or made here; it stands in the log and goes back to the caller.
        traceparent: W3C Trace Context of the caller; empty: none.
        began_ns, ended_ns: Wall time since 1970.
        code: gRPC's name of how it ended, such as OK.
    """

    method: str
    caller: str = ""
    request_id: str = ""
    traceparent: str = ""
    began_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0
    code: str = "UNKNOWN"


@dataclass(slots=True)
class Item:
    """One photograph of a call.

    Attributes:
        bundle: Name that was asked for; of an answer, the bundle that answered.
        began_ns, ended_ns: Wall time since 1970; waiting included.
        queued_s: Of that, waiting for a worker.
        code: As `Call.code`.
        answer: None: there is none.
        replayed: It was answered before.
    """

    bundle: str
    began_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0
    queued_s: float = 0.0
    code: str = "UNKNOWN"
    answer: Answer | None = None
    replayed: bool = False


class Observer(Protocol):
    """Watches the service; called in its event loop, so it must be quick and may not raise."""

    def item(self, call: Call, item: Item) -> None:
        """A photograph was answered or refused."""
        ...

    def call(self, call: Call) -> None:
        """A call has ended."""
        ...


class Nobody:
    """Watches nothing. Fulfils `Observer`."""

    def item(self, call: Call, item: Item) -> None:
        """Nothing."""

    def call(self, call: Call) -> None:
        """Nothing."""


class Observers:
    """Tells several, in order. Fulfils `Observer`.

    One that raises is logged once and harms neither the service nor the others.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self._failed: set[int] = set()

    def item(self, call: Call, item: Item) -> None:
        """Tell each."""
        for observer in self._observers:
            try:
                observer.item(call, item)
            except Exception as error:  # noqa: BLE001  watching may not cost an answer
                self._say(observer, error)

    def call(self, call: Call) -> None:
        """Tell each."""
        for observer in self._observers:
            try:
                observer.call(call)
            except Exception as error:  # noqa: BLE001  as above
                self._say(observer, error)

    def _say(self, observer: Observer, error: Exception) -> None:
        if id(observer) not in self._failed:
            self._failed.add(id(observer))
            name = type(observer).__name__
            _log.error("%s failed; what it shows has gaps, further failures are not logged", name, exc_info=error)
