"""Where Ray Serve's gRPC proxy listens, and whom it hears.

Of its own accord it listens on every address in plain text, reads each message whole before it asks anybody, and bounds
nothing. It has no settings for that (2.60), so the functions that do so are replaced in its process; where a later Ray
has none of their names, its processes fail instead of listening everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2r2.errors import BackendError

if TYPE_CHECKING:
    import grpc

    from l2r2_serving.settings import ServerSettings

LISTENING = "L2R2_RAY_LISTENING"
"""Environment variable that tells Ray's processes where the proxy listens, with which certificates, and to whom."""

HOOK = "l2r2_serving.ray_proxy.listen_as_told"
"""Run by Ray first thing in each of its processes."""

CALLS = 1024
"""That a proxy keeps open, for all of its replicas; each of those bounds its own."""


def listening(settings: ServerSettings, port: int) -> dict[str, str]:
    """The environment that has Serve's proxy listen as a server of these settings would."""
    told = {
        "host": settings.host,
        "port": port,
        "tls": settings.tls and settings.tls.model_dump(mode="json"),
        "tokens": settings.tokens and str(settings.tokens.resolve()),
    }
    return {LISTENING: json.dumps(told), "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(settings.max_message_mb * 2**20)}


def listen_as_told() -> None:
    """Replace what Ray lacks settings for.

    Raises:
        BackendError: this version of Ray has something else there.
    """
    from ray.serve._private import default_impl, grpc_util, proxy

    server = grpc_util.gRPCGenericServer
    if not (
        hasattr(default_impl, "add_grpc_address")
        and hasattr(proxy.gRPCProxy, "not_found_response")
        and hasattr(server, "_override_method_handler")
    ):
        raise BackendError("this version of Ray opens the proxy's port otherwise; use Ray 2.60")
    default_impl.add_grpc_address = _add_address
    proxy.gRPCProxy.not_found_response = _unavailable
    server._override_method_handler = _bounded(server._override_method_handler)


def _bounded(override: Callable[[Any, str, Any], Any]) -> Callable[[Any, str, Any], Any]:
    """Ray's handler of a method behind our own doors, as `RecognitionServer` has them."""

    def overridden(server: Any, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        from l2r2_serving.reading import behind, late

        passed = late(method, _only_one(override(server, method, handler)))
        if not hasattr(server, "l2r2_doors"):
            server.l2r2_doors = _doors()
        for door in server.l2r2_doors:
            passed = behind(partial(door, method), passed)
        return passed

    return overridden


def _only_one(handler: Any) -> Any:
    """Of the four kinds that Ray fills in, the one that the method is."""
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    others = {name: None for name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream") if name != kind}
    return handler._replace(**others)


def _doors() -> list[Callable[[str, Any], Any]]:
    """From the innermost to the outermost: room, and whether the caller may."""
    from l2r2_serving.auth import TokenInterceptor, Tokens
    from l2r2_serving.reading import OPEN
    from l2r2_serving.shedding import Rooms

    tokens = json.loads(os.environ[LISTENING])["tokens"]
    doors: list[Callable[[str, Any], Any]] = [Rooms(CALLS).bounded]
    if tokens is not None:
        guard = TokenInterceptor(Tokens(Path(tokens)))
        doors.append(lambda method, answer: answer if method.startswith(OPEN) else guard.guarded(method, answer))
    return doors


async def _unavailable(_proxy: object, _request: object) -> AsyncIterator[Any]:
    """Where there is no replica yet, or no longer; Ray says NOT_FOUND."""
    import grpc
    from ray.serve._private.proxy_request_response import ResponseStatus

    yield ResponseStatus(grpc.StatusCode.UNAVAILABLE, True, "the service is starting or stopping; try again")


def _add_address(server: Any, _everywhere: str) -> None:
    from l2r2_serving.settings import TlsSettings

    told = json.loads(os.environ[LISTENING])
    host = f"[{told['host']}]" if ":" in told["host"] else told["host"]
    place = f"{host}:{told['port']}"
    if told["tls"] is None:
        server.add_insecure_port(place)
    else:
        from l2r2_serving.tls import credentials

        server.add_secure_port(place, credentials(TlsSettings.model_validate(told["tls"])))
