"""Who may call what: bearer tokens, whose hashes alone are kept, and client certificates.

A token is 32 random bytes, so that a plain SHA-256 of it gives nothing away: nobody guesses it, and no slow hash is
needed. A certificate is known by the name that its authority vouches for, not by its fingerprint: so it is still known
when it is renewed, which short-lived ones are daily. The file is TOML, a section a caller:

    [tokens.herbarium-app]
    sha256 = "9f86d0…"
    methods = ["Recognize", "StreamRecognize"]   # left out: all of l2r2.v1; others as "inference.GRPCInferenceService"
    expires = 2027-01-31                         # left out: never; the last day, UTC

    [certificates.museum-gateway]
    name = "gateway.museum.example"              # an alternative name, or its common name where it has none
    methods = ["Recognize"]                      # and `expires`, both as of tokens

A caller is who its token says, if it sends one, and otherwise who its certificate says; one of them must be listed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import grpc
from pydantic import Field

from l2r2.config import Settings, parse_settings
from l2r2.errors import ConfigError, L2R2Error
from l2r2_serving.callers import host_of, identity
from l2r2_serving.errors import NotAllowed, Unauthenticated
from l2r2_serving.guarding import GuardedStream
from l2r2_serving.reading import OPEN, Answering, abort, behind
from l2r2_serving.renewing import RenewedFiles
from l2r2_serving.status import grpc_code_of
from l2r2_serving.v1 import recognition_pb2 as pb

OWN = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name
"""Whose methods a token is for unless its section says otherwise."""

UNKNOWN = "no token, or none that is good; send the one you were given, as metadata authorization: Bearer TOKEN"
"""The same words whatever is wrong with it."""

REPORT_S = 60.0
"""At most so often a line about refused calls is logged."""

_log = logging.getLogger(__name__)


class Rights(Settings):
    """What a caller may do."""

    methods: tuple[str, ...] | None = None
    """Methods of l2r2.v1.RecognitionService by name, and other services by theirs; None: all of l2r2.v1."""
    expires: date | None = None
    """The last day on which it is good, UTC."""

    @property
    def over(self) -> bool:
        """Whether its last day is past."""
        return self.expires is not None and _today() > self.expires

    def may_call(self, method: str) -> bool:
        """Whether it is for a method, /SERVICE/METHOD."""
        service, _, name = method.removeprefix("/").partition("/")
        if service.startswith("grpc.reflection."):  # what it tells is in the .proto
            return True
        if self.methods is None:
            return service == OWN
        return service in self.methods or (service == OWN and name in self.methods)


class Token(Rights):
    """A caller known by a token."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Certificate(Rights):
    """A caller known by a certificate."""

    name: str = Field(min_length=1)
    """Any of its alternative names (DNS, URI as SPIFFE's, address); of one that has none, the common name."""


class Callers(Settings):
    """All callers by name."""

    tokens: dict[str, Token] = {}
    certificates: dict[str, Certificate] = {}


def read_callers(path: Path) -> Callers:
    """Read a file of callers.

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
        return parse_settings(Callers, values, str(path))
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
    """The callers of a file that may change while it is used."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: as `read_callers`.
        """
        self._path, self._file = path, RenewedFiles([path])
        self._known = read_callers(path)
        self._readings = 0

    def check(self, header: str, method: str, certified: Sequence[str] = ()) -> str:
        """Name of the caller.

        Args:
            header: Of the metadata "authorization"; empty: there is none.
            method: As on the wire, /SERVICE/METHOD.
            certified: Names in the caller's certificate; empty: it showed none. Asked only where there is no header.
        Raises:
            Unauthenticated: no such token, or it has expired.
            NotAllowed: it is not for this method; or the certificate is not listed among those that are.
        """
        known = self._current()
        by_certificate = certified and known.certificates and not header
        caller, rights = _by_certificate(known, certified) if by_certificate else _by_token(known, header)
        if not rights.may_call(method):
            name = method.rpartition("/")[2]
            may = OWN if rights.methods is None else ", ".join(rights.methods) or "nothing"
            raise NotAllowed(f"{caller} may not call {name}; it may call {may}")
        return caller

    @property
    def by_certificate(self) -> bool:
        """Whether a caller may be known by its certificate."""
        return bool(self._current().certificates)

    @property
    def state(self) -> tuple[int, date]:
        """Another one whenever the answers of `check` may be others."""
        self._current()
        return self._readings, _today()

    def _current(self) -> Callers:
        try:
            known = self._file.reread(lambda: read_callers(self._path))
        except ConfigError as error:
            _log.error("the changed token file is refused, the old one is used on: %s", error)
        else:
            if known is not None:
                self._known = known
                self._readings += 1
        return self._known


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses a call of nobody it knows, and names its caller to the rest.

    Both are judged before the call's message is read. A stream whose caller is welcome no more ends once what it had
    accepted is answered. Stands before a `ReadingInterceptor`.

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
        header = _header(handler_call_details.invocation_metadata)
        if header or not self._tokens.by_certificate:  # no certificate is looked at
            try:
                self._tokens.check(header, method)
            except L2R2Error as error:
                return self._refusing(error)
        handler: Any = await continuation(handler_call_details)
        return None if handler is None else behind(lambda answer: self.guarded(method, answer), handler)

    def guarded(self, method: str, answer: Answering) -> Answering:
        """A method that is called only for those who may.

        Args:
            method: As on the wire, /SERVICE/METHOD.
        """

        async def answering(_messages: Any, context: Any) -> Any:
            header = _header(context.invocation_metadata())

            def check() -> str:
                return self._tokens.check(header, method, names_of(context))

            try:
                identity.set(check())
            except L2R2Error as error:
                await self._refuse(error, context)
            stream = GuardedStream(context, check, lambda: self._tokens.state)
            with stream.watched():
                response = await answer(stream.messages(), stream)
            if stream.refusal is not None:
                await self._refuse(stream.refusal, context)
            return response

        return answering

    def _refusing(self, error: L2R2Error) -> grpc.RpcMethodHandler:
        """A handler that ends any call at once; as one of streams it waits for no message."""

        async def refuse(_requests: Any, context: Any) -> None:
            await self._refuse(error, context)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _refuse(self, error: L2R2Error, context: Any) -> None:
        """End a call; never returns."""
        self._count(grpc_code_of(error).name, context.peer())
        await abort(context, error)

    def _count(self, code: str, peer: str) -> None:
        """A flood is a line a minute."""
        self.refused[code] += 1
        now, total = time.monotonic(), self.refused.total()
        if now >= self._report_at:
            _log.warning("calls refused: %d; the last one %s, from %s", total - self._reported, code, host_of(peer))
            self._report_at, self._reported = now + REPORT_S, total


def _header(metadata: Any) -> str:
    """What a call's metadata has as "authorization"; empty: nothing."""
    sent = {str(key): value for key, value in metadata or ()}.get("authorization", "")
    return sent if isinstance(sent, str) else ""


def names_of(context: Any) -> tuple[str, ...]:
    """Alternative names in a caller's certificate; of one that has none, its common name; empty without mTLS."""
    shown = context.auth_context()
    for kind in ("x509_subject_alternative_name", "x509_common_name"):
        names = tuple(name.decode("utf-8", "replace") for name in shown.get(kind, ()) if name)
        if names:
            return names
    return ()


def _by_token(known: Callers, header: str) -> tuple[str, Rights]:
    scheme, _, token = header.partition(" ")
    sent = hash_of(token.strip())
    found = ""
    for name, each in known.tokens.items():  # all of them, so that the time tells nothing
        if hmac.compare_digest(each.sha256, sent):
            found = name
    rights = known.tokens.get(found)
    if rights is None or scheme.lower() != "bearer" or rights.over:
        raise Unauthenticated(UNKNOWN)
    return found, rights


def _by_certificate(known: Callers, certified: Sequence[str]) -> tuple[str, Rights]:
    for name, rights in known.certificates.items():
        if rights.name in certified and not rights.over:
            return name, rights
    raise NotAllowed(f"the certificate of {certified[0]} is not listed here, or no longer; ask who runs the service")


def _today() -> date:
    return datetime.now(UTC).date()
