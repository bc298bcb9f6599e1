"""Who may call what: bearer tokens, whose hashes alone are kept.

A token is 32 random bytes, so that a plain SHA-256 of it gives nothing away: nobody guesses it, and no slow hash is
needed. The file is TOML, a section a caller:

    [tokens.herbarium-app]
    sha256 = "9f86d0…"
    methods = ["Recognize", "StreamRecognize"]   # left out: all of l2r2.v1; others as "inference.GRPCInferenceService"
    expires = 2027-01-31                         # left out: never; the last day, UTC
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import grpc
from pydantic import Field

from l2r2.config import Settings, parse_settings
from l2r2.errors import ConfigError, L2R2Error
from l2r2_serving.callers import host_of, identity
from l2r2_serving.errors import NotAllowed, Unauthenticated
from l2r2_serving.status import DETAILS_KEY, code_of, status_of
from l2r2_serving.v1 import recognition_pb2 as pb

OPEN = ("/grpc.health.v1.Health/",)
"""Beginnings of methods that nobody needs a token for: whoever balances or restarts servers has none."""

OWN = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name
"""Whose methods a token is for unless its section says otherwise."""

UNKNOWN = "no token, or none that is good; send the one you were given, as metadata authorization: Bearer TOKEN"
"""The same words whatever is wrong with it."""

REPORT_S = 60.0
"""At most so often a line about refused calls is logged."""

_log = logging.getLogger(__name__)


class Token(Settings):
    """What a caller may do."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    methods: tuple[str, ...] = ()
    """Methods of l2r2.v1.RecognitionService by name, and other services by theirs; empty: all of l2r2.v1."""
    expires: date | None = None
    """The last day on which it is good, UTC."""

    def may_call(self, method: str) -> bool:
        """Whether it is for a method, /SERVICE/METHOD."""
        service, _, name = method.removeprefix("/").partition("/")
        if service.startswith("grpc.reflection."):  # what it tells is in the .proto
            return True
        own = service == OWN
        return service in self.methods or (own and (not self.methods or name in self.methods))


class TokenFile(Settings):
    """All callers by name."""

    tokens: dict[str, Token] = {}


def read_tokens(path: Path) -> Mapping[str, Token]:
    """Read a token file.

    Raises:
        ConfigError: not there, no TOML, or not of this form. No value is repeated: it may be a token in place of its
            hash, and the message goes to the log.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"{path} is no token file: {reason}; make one: l2r2 token NAME --file {path}") from None
    try:
        return parse_settings(TokenFile, values, str(path)).tokens
    except ConfigError as error:
        place, _, rest = str(error).partition(" = ")
        if not rest:
            raise
        raise ConfigError(f"{place} is not what it should be; expected what `l2r2 token` writes") from None


def new_token() -> str:
    """43 characters that nobody guesses."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """What is kept of a token: 64 hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of a file that may change while it is used."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: as `read_tokens`.
        """
        self._path = path
        self._seen = self._stamp()
        self._known = read_tokens(path)

    def check(self, header: str, method: str) -> str:
        """Name of the caller.

        Args:
            header: Of the metadata "authorization"; empty: there is none.
            method: As on the wire, /SERVICE/METHOD.
        Raises:
            Unauthenticated: no such token, or it has expired.
            NotAllowed: it is not for this method.
        """
        scheme, _, token = header.partition(" ")
        sent = hash_of(token.strip())
        found = ""
        for name, known in self._current().items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known.sha256, sent):
                found = name
        known_now = self._known.get(found)
        if known_now is None or scheme.lower() != "bearer" or _over(known_now):
            raise Unauthenticated(UNKNOWN)
        if not known_now.may_call(method):
            name, may = method.rpartition("/")[2], ", ".join(known_now.methods or (OWN,))
            raise NotAllowed(f"{found} may not call {name}; it may call {may}")
        return found

    def _current(self) -> Mapping[str, Token]:
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._known = read_tokens(self._path)
            except ConfigError as error:
                _log.error("the changed token file is refused, the old one is used on: %s", error)
        return self._known

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses a call without a good token before its message is read, and names its caller to the rest.

    Attributes:
        refused: Calls so far, by gRPC's name of the status.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.refused: Counter[str] = Counter()
        self._report_at, self._reported = 0.0, 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """As gRPC calls it."""
        method = handler_call_details.method
        if method.startswith(OPEN):
            return await continuation(handler_call_details)
        sent = {str(key): value for key, value in handler_call_details.invocation_metadata or ()}
        header = sent.get("authorization", "")
        try:
            identity.set(self._tokens.check(header if isinstance(header, str) else "", method))
        except L2R2Error as error:
            return self._refusing(error)
        return await continuation(handler_call_details)

    def _refusing(self, error: L2R2Error) -> grpc.RpcMethodHandler:
        """A handler that ends any call at once; as one of streams it waits for no message."""
        status, code = status_of(error), code_of(type(error))

        async def refuse(_requests: Any, context: Any) -> None:
            self._count(code.name, context.peer())
            await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _count(self, code: str, peer: str) -> None:
        """A flood is a line a minute."""
        self.refused[code] += 1
        now, total = time.monotonic(), self.refused.total()
        if now >= self._report_at:
            _log.warning("calls refused: %d; the last one %s, from %s", total - self._reported, code, host_of(peer))
            self._report_at, self._reported = now + REPORT_S, total


def _over(token: Token) -> bool:
    return token.expires is not None and datetime.now(UTC).date() > token.expires
