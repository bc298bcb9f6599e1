"""What both clients share: how to reach a server, what a failure means, and when another try may heal it."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from l2r2.errors import ConfigError, DeadlinePassed, InputError, L2R2Error, ServingError
from l2r2_serving.answer import Answer
from l2r2_serving.callers import REQUEST_ID
from l2r2_serving.convert import to_answer
from l2r2_serving.errors import NotReady
from l2r2_serving.limits import MAX_MESSAGE_MB
from l2r2_serving.status import error_of, read_details
from l2r2_serving.tls import is_loopback
from l2r2_serving.v1 import recognition_pb2 as pb

TIMEOUT_S = 30.0
"""How long a caller waits unless it says otherwise; a queue's worth of photographs on a small device."""

WINDOW = 32
"""Photographs of a stream that are on their way at once; so a queue of ten thousand does not lie in memory."""

KEEPALIVE_S = 60.0
"""After so long without a sign of life a connection is asked for one, so that a dead one is noticed."""

KEEPALIVE_TIMEOUT_S = 20.0
"""How long it may take to give one."""

MANY = ("dns:", "ipv4:", "ipv6:", "xds:")
"""How targets begin that may stand for several servers."""

HEALING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
"""Codes that another try may not meet; of a server that is still warming up the error tells. A deadline that passed is
the caller's own; others would only be said again. CANCELLED is what gRPC's server says as it stops, of calls that it
had taken and not begun, and of those that outlast its grace; what the caller itself cancels does not come here."""

CUT_SHORT = "Internal error from Core"
"""What gRPC's asyncio client says of a message that a broken connection cut short, as INTERNAL; seen in 1.85."""

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Retries:
    """When to try again. gRPC's own retries know no google.rpc.RetryInfo and no total time, so they are not used.

    Attributes:
        most: Tries after the first; 0: none.
        first_s, factor, longest_s: The wait before the first of them, what each is longer by, and the longest.
    """

    most: int = 4
    first_s: float = 0.2
    factor: float = 2.0
    longest_s: float = 5.0

    def wait_s(self, tried: int, asked_s: float = 0.0) -> float:
        """Seconds before the next try: at least what the server asked for, else backing off, spread at random.

        Args:
            tried: Tries after the first that have failed, from 0.
        """
        backing = min(self.first_s * self.factor**tried, self.longest_s)
        return max(asked_s, backing * random.uniform(0.5, 1.0))  # noqa: S311


@dataclass(frozen=True, slots=True)
class Card:
    """What a bundle is and knows.

    Attributes:
        name, version: As in `Answer`.
        class_names: In the order of `Candidate.index`.
        hazardous: Those that are withheld where the foreground is unsure.
        vocabularies: Metadata source → values that it knows.
        gate_threshold, localizer_threshold: Confidences, [0, 1].
        coverage: Of its prediction sets, (0, 1); None: it has none.
        fusion, localizer, deployment: Their names.
        max_bytes, max_pixels, min_side_px: What a photograph may be.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    hazardous: tuple[str, ...]
    vocabularies: dict[str, tuple[str, ...]]
    gate_threshold: float
    localizer_threshold: float
    coverage: float | None
    fusion: str
    localizer: str
    deployment: str
    max_bytes: int
    max_pixels: int
    min_side_px: int


def to_card(found: pb.BundleDescription) -> Card:
    """Hear a description."""
    return Card(
        name=found.info.name,
        version=found.info.version,
        class_names=tuple(found.class_names),
        hazardous=tuple(found.hazardous_class_names),
        vocabularies={each.source: tuple(each.values) for each in found.vocabularies},
        gate_threshold=found.gate_threshold,
        localizer_threshold=found.localizer_threshold,
        coverage=found.coverage if found.HasField("coverage") else None,
        fusion=found.fusion,
        localizer=found.localizer,
        deployment=found.deployment,
        max_bytes=found.image_limits.max_bytes,
        max_pixels=found.image_limits.max_pixels,
        min_side_px=found.image_limits.min_side_px,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """What became of one photograph of a queue.

    Attributes:
        id: The caller's own name for it.
        result: The answer, or the error that `recognize` would have raised.
        replayed: Whether the server had answered it before, over a connection that broke.
    """

    id: str
    result: Answer | L2R2Error
    replayed: bool


def to_streamed(response: pb.StreamRecognizeResponse) -> Streamed:
    """Hear an item's result."""
    if response.WhichOneof("result") == "response":
        return Streamed(response.id, to_answer(response.response), response.replayed)
    return Streamed(response.id, item_error(response.status), response.replayed)


def item_error(status: pb.ItemStatus) -> L2R2Error:
    """The error that an item's status was made of."""
    return error_of(status_pb2.Status.FromString(status.SerializeToString()))


@dataclass(frozen=True, slots=True)
class Reach:
    """How to reach a server.

    Attributes:
        server: HOST:PORT, or gRPC's dns:///NAME:PORT, ipv4:A:PORT,B:PORT, …: calls are spread over all those addresses.
        max_message_mb: MiB of a message either way; the server's limit counts as well.
        tls: Certificates that the server's must come from, PEM; True: those that this machine trusts; None: plain text.
        certificate: This caller's own certificate and key, PEM, for mTLS.
        token: Sent with each call; over plain text only to this machine.
    """

    server: str
    max_message_mb: int = MAX_MESSAGE_MB
    tls: Path | bool | None = None
    certificate: tuple[Path, Path] | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and not self.tls and not is_loopback(self.server.rpartition(":")[0]):
            raise ConfigError(
                f"a token would travel to {self.server} as plain text, for anybody to read; expected TLS: give tls"
            )
        if self.certificate is not None and not self.tls:
            raise ConfigError("a certificate of one's own goes with TLS; give tls as well")

    @property
    def limit(self) -> int:
        """Bytes of a message."""
        return self.max_message_mb * 2**20

    def options(self) -> list[tuple[str, Any]]:
        """Of a channel."""
        spread = [("grpc.lb_policy_name", "round_robin")] if self.server.startswith(MANY) else []
        # An HTTP proxy of the environment would read what is sent as plain text; through TLS it sees nothing.
        direct = [] if self.tls else [("grpc.enable_http_proxy", 0)]
        return [
            *spread,
            *direct,
            ("grpc.max_send_message_length", self.limit),
            ("grpc.max_receive_message_length", self.limit),
            ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE_S)),
            ("grpc.http2.ping_timeout_ms", int(1000 * KEEPALIVE_TIMEOUT_S)),
            ("grpc.enable_retries", 0),
        ]

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Of TLS; None: plain text.

        Raises:
            ConfigError: a file cannot be read.
        """
        if not self.tls:
            return None
        key, chain = (None, None) if self.certificate is None else (self.certificate[1], self.certificate[0])
        ca = None if self.tls is True else Path(self.tls)
        return grpc.ssl_channel_credentials(*(None if path is None else _pem(path) for path in (ca, key, chain)))

    def metadata(self) -> Pairs:
        """Of a call: a name of its own, the same in all of its tries, and the token."""
        named = ((REQUEST_ID, secrets.token_hex(8)),)
        return named if self.token is None else (*named, ("authorization", f"Bearer {self.token}"))

    def check_size(self, size: int) -> None:
        """Refuse what would not go through.

        Raises:
            InputError: larger than a message may be.
        """
        if size > self.limit:
            raise InputError(
                f"the request has {size:,} bytes; at most {self.limit:,} are sent: shrink the photographs, send fewer, "
                "or raise the limit here and on the server"
            )


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; expected a PEM file for TLS") from None


class Trying:
    """One call's tries, within its time."""

    def __init__(self, reach: Reach, retries: Retries, timeout_s: float | None) -> None:
        """Begin to count.

        Args:
            timeout_s: Seconds for all tries; None: without end.
        """
        self._reach, self._retries, self._timeout_s = reach, retries, timeout_s
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self._tried = 0

    def left_s(self) -> float | None:
        """Seconds for the next try."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def progressed(self) -> None:
        """What went before is forgiven."""
        self._tried = 0

    def wait_s(self, error: grpc.RpcError | grpc.aio.AioRpcError) -> float:
        """Seconds to wait before another try.

        Raises:
            L2R2Error: what the failure means, where no other try would heal it or fit.
        """
        status = _status(error)
        wait = self._retries.wait_s(self._tried, _asked_s(status))
        meaning = self._meaning(error, status)
        self._tried += 1
        left = self.left_s()
        if (
            not (error.code() in HEALING or error.details() == CUT_SHORT or isinstance(meaning, NotReady))
            or isinstance(meaning, InputError)
            or self._tried > self._retries.most
            or (left is not None and wait >= left)
        ):
            raise meaning from error
        return wait

    def _meaning(self, error: grpc.RpcError, status: status_pb2.Status) -> L2R2Error:
        code, message = error.code(), error.details() or ""
        if not status.details and code is grpc.StatusCode.UNAVAILABLE:
            return ServingError(f"{self._reach.server} cannot be reached ({message}); is `l2r2 serve` running there?")
        if not status.details and code is grpc.StatusCode.CANCELLED:
            return ServingError(
                f"{self._reach.server} dropped the call ({message}), as a server does that stops; try again"
            )
        if not status.details and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlinePassed(
                f"{self._reach.server} gave no answer within {self._timeout_s or 0:g} s; give more time, or ask less "
                "at once"
            )
        return error_of(status)


def _status(error: grpc.RpcError) -> status_pb2.Status:
    trailing: Sequence[tuple[str, str | bytes]] = [(key, value) for key, value in error.trailing_metadata() or ()]
    return read_details(error.code(), error.details() or "", trailing)


def _asked_s(status: status_pb2.Status) -> float:
    """Seconds that the server asked to wait."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds()) / 1e9
    return 0.0
