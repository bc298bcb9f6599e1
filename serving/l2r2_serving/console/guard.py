"""What every answer of the console carries, and whom it answers."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""The page fetches nothing from elsewhere, and nothing of a photograph is left in a browser's cache."""


class Guard:
    """Refuses pages of other sites that a browser has open: they could ask with the console's own token.

    A name that points to this machine but is not its own (DNS rebinding) is refused by `hosts`, a request that another
    page sends by its Origin.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None = None) -> None:
        """Stand before an application.

        Args:
            hosts: Names in the Host header that are answered, lower case; None: any.
        """
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app(scope, receive, sending)

    def _refusal(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self._hosts:
            return "the console does not answer under this name; open it as `l2r2 console` says\n"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "the console answers its own page only\n"
        return None
