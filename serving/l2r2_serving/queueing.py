"""A caller's queue on its way through a stream: after a broken connection what was not answered is sent again."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Container, Iterable, Iterator

from l2r2.errors import InputError
from l2r2.types import Metadata
from l2r2_serving.calling import WINDOW, Reach, Streamed, to_streamed
from l2r2_serving.v1 import recognition_pb2 as pb

Photo = tuple[str, bytes, Metadata]
ToRequest = Callable[[bytes, Metadata], pb.RecognizeRequest]


class Queueing:
    """One queue in one session. Its requests are taken by one thread while another takes the answers."""

    def __init__(self, photos: Iterable[Photo], to_request: ToRequest, reach: Reach) -> None:
        """Take nothing yet."""
        self._photos = iter(photos)
        self._to_request, self._reach = to_request, reach
        self._session = uuid.uuid4().hex
        self._unanswered: dict[str, pb.StreamRecognizeRequest] = {}
        self._exhausted = False
        self._failure: Exception | None = None
        self._turn = 0
        self._changed, self._taking = threading.Condition(), threading.Lock()

    @property
    def done(self) -> bool:
        """Whether all that could be sent was answered."""
        with self._changed:
            return self._exhausted and not self._unanswered

    def check(self) -> None:
        """Raise what was wrong with a photograph that could not be sent, or with the queue itself."""
        if self._failure is not None:
            raise self._failure

    def requests(self) -> Iterator[pb.StreamRecognizeRequest]:
        """For one connection: what was not answered, then what comes, as far as the window reaches."""
        sent: set[str] = set()
        with self._changed:
            turn = self._turn
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._turn != turn
                        or self._unsent(sent) is not None
                        or self._exhausted
                        or len(self._unanswered) < WINDOW
                    )
                )
                item = self._unsent(sent)
                if self._turn != turn or (item is None and self._exhausted):
                    return
            if item is None:
                self._take(turn, sent)
            else:
                sent.add(item.id)
                yield item

    def answered(self, response: pb.StreamRecognizeResponse) -> Streamed | None:
        """Take an answer; None: it had been told before."""
        with self._changed:
            known = self._unanswered.pop(response.id, None)
            self._changed.notify_all()
        return None if known is None else to_streamed(response)

    def broken(self) -> None:
        """The connection is gone: whoever waits to send over it stops."""
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    def _unsent(self, sent: Container[str]) -> pb.StreamRecognizeRequest | None:
        return next((item for name, item in self._unanswered.items() if name not in sent), None)

    def _take(self, turn: int, sent: Container[str]) -> None:
        """Take one photograph more from the queue, however long that lasts: answers are heard meanwhile."""
        with self._taking:
            with self._changed:
                # What a broken connection's thread took meanwhile is sent before anything more is asked for.
                taken = self._unsent(sent) is not None
                if taken or self._turn != turn or self._exhausted or len(self._unanswered) >= WINDOW:
                    return
            item = None
            try:
                item = self._taken()
            except Exception as error:  # noqa: BLE001  in gRPC's thread it would be lost; `check` raises it
                self._failure = error
            with self._changed:
                if item is None:
                    self._exhausted = True
                else:
                    self._unanswered[item.id] = item
                self._changed.notify_all()

    def _taken(self) -> pb.StreamRecognizeRequest | None:
        photo = next(self._photos, None)
        if photo is None:
            return None
        name, data, metadata = photo
        check_new(name, self._unanswered)
        request = self._to_request(data, metadata)
        self._reach.check_size(request.ByteSize())
        return pb.StreamRecognizeRequest(id=name, session=self._session, request=request)


def check_new(name: str, unanswered: Container[str]) -> None:
    """Refuse a name that would make two answers one.

    Raises:
        InputError: a photograph of that name is on its way.
    """
    if name in unanswered:
        raise InputError(f"two photographs of the queue are named {name!r}; expected another name for each")
