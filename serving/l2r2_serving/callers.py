"""Who calls, and what a call says of itself in its metadata."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from l2r2_serving.observing import Call

REQUEST_ID = "x-request-id"
"""Metadata key of a caller's name for its request; with the status of its answer, and at the beginning of a stream, the
service says it, or one of its own."""

TRACEPARENT = "traceparent"
"""Source: W3C Trace Context."""

identity: ContextVar[str] = ContextVar("identity", default="")
"""Name that a token or a certificate gave the caller of the current call; empty: nobody asked."""

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def begun(method: str, context: Any) -> Call:
    """The record of a call that begins now.

    Args:
        method: Its full name.
        context: gRPC's.
    """
    sent = {str(key): value for key, value in context.invocation_metadata() or ()}
    given, parent = sent.get(REQUEST_ID, ""), sent.get(TRACEPARENT, "")
    return Call(
        method,
        caller=caller_of(context),
        request_id=given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8),
        traceparent=parent if isinstance(parent, str) and _TRACEPARENT.fullmatch(parent) else "",
    )


def caller_of(context: Any) -> str:
    """Who a call is counted for: whom its token or certificate names, else its host."""
    return identity.get() or certified(context) or host_of(context.peer())


def certified(context: Any) -> str:
    """Name in the caller's certificate: its first alternative name, else its common name; empty without mTLS."""
    shown = context.auth_context()
    for kind in ("x509_subject_alternative_name", "x509_common_name"):
        if shown.get(kind):
            return str(shown[kind][0].decode("utf-8", "replace"))
    return ""


def host_of(peer: str) -> str:
    """gRPC's "ipv4:127.0.0.1:4711" → 127.0.0.1: a host's connections are one caller."""
    kind, _, place = unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else peer
