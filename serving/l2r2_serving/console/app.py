"""The console's web application, on Starlette."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from l2r2.config import ImageSettings
from l2r2.errors import DeadlinePassed, ImageError, InputError, L2R2Error, Overloaded
from l2r2_serving.answer import Answer
from l2r2_serving.calling import TIMEOUT_S, Card, Retries
from l2r2_serving.client import Client
from l2r2_serving.console.guard import Guard
from l2r2_serving.console.overlay import draw
from l2r2_serving.console.page import failed_html, page_html
from l2r2_serving.console.question import MAX_LINE_BYTES, Question, read_question
from l2r2_serving.console.result import answer_html, error_html
from l2r2_serving.limits import MAX_MESSAGE_MB, Slots

AT_ONCE = 8
"""Photographs in work, each held in memory; more are refused at once."""

UPLOAD_S = 60.0
"""How long a photograph may take to arrive."""

DESCRIPTION_S = 5.0
"""How long a description may take; it is at hand."""

RETRIES = Retries(most=2)
"""Somebody waits in front of the page, and can press the button again."""

FAILED = "the console failed on this request; its log has the reason"

TYPES = {"console.css": "text/css", "console.js": "text/javascript"}


class Console:
    """Asks one server for whoever opens the page. A photograph is in memory only, and only until its answer is sent."""

    def __init__(
        self, server: str, *, tls: Path | bool | None = None, token: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            server, tls, token: As `l2r2_serving.client.Client`.
            timeout_s: Of one photograph.
        Raises:
            ConfigError: as the client says.
        """
        self._server, self._tls, self._token, self._timeout_s = server, tls, token, timeout_s
        self._clients: dict[str, Client] = {"": self._client("")}
        self._slots = Slots(AT_ONCE)
        self._names: frozenset[str] = frozenset()

    def app(self, hosts: frozenset[str] | None = None) -> Guard:
        """The application.

        Args:
            hosts: Names under which it answers; None: any.
        """
        routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/recognize", self.recognize, methods=["POST"]),
            *(Route(f"/{name}", _file(name), methods=["GET"]) for name in TYPES),
        ]
        return Guard(Starlette(routes=routes, exception_handlers={Exception: _failed}), hosts)

    def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            client.close()

    async def page(self, request: Request) -> Response:
        """GET /, and /?bundle=NAME where several are served."""
        try:
            names, card = await run_in_threadpool(self._describe, request.query_params.get("bundle", ""))
        except L2R2Error as error:
            return HTMLResponse(failed_html(str(error)), _code(error))
        return HTMLResponse(page_html(card, names, self._server))

    async def recognize(self, request: Request) -> Response:
        """POST /recognize: the page's question, answered by a part of a page."""
        try:
            with self._slots.take():
                body = await _body(request, MAX_MESSAGE_MB * 2**20 + MAX_LINE_BYTES)
                question, photograph = read_question(body)
                del body
                return HTMLResponse(await run_in_threadpool(self._answer, question, photograph))
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except L2R2Error as error:
            return HTMLResponse(error_html(str(error)), _code(error))

    def _describe(self, name: str) -> tuple[list[str], Card]:
        names = sorted(self._clients[""].bundles(DESCRIPTION_S))
        self._names = frozenset(names)
        if not name and len(names) > 1:
            name = names[0]
        return names, self._clients[""].bundle(name, DESCRIPTION_S)

    def _answer(self, question: Question, photograph: bytes) -> str:
        known, client = question.known(), self._asked(question.bundle)
        answer = client.recognize(photograph, known, question.top_k, options=question.options())
        card = client.bundle(timeout_s=DESCRIPTION_S)
        return answer_html(answer, _drawn(photograph, answer, card), known, card)

    def _asked(self, name: str) -> Client:
        """A client a bundle, for those that are served."""
        if name not in self._clients:
            if name not in self._names:
                self._names = frozenset(self._clients[""].bundles(DESCRIPTION_S))
            if name not in self._names:
                raise InputError(f"no bundle {name!r} is served any more; load the page again")
            self._clients.setdefault(name, self._client(name))
        return self._clients[name]

    def _client(self, name: str) -> Client:
        return Client(
            self._server, bundle=name, timeout_s=self._timeout_s, tls=self._tls, token=self._token, retries=RETRIES
        )


def _drawn(photograph: bytes, answer: Answer, card: Card) -> bytes:
    found = answer.detections or (answer.prediction,)
    regions = [each.region for each in found if each.region is not None]
    usual = ImageSettings()
    settings = ImageSettings(
        max_bytes=card.max_bytes or usual.max_bytes,
        max_pixels=card.max_pixels or usual.max_pixels,
        min_side_px=card.min_side_px or usual.min_side_px,
    )
    try:
        return draw(photograph, regions, settings)
    except ImageError:
        return b""


async def _body(request: Request, limit: int) -> bytes:
    """A request's body, no longer than `limit` bytes."""
    too_large = InputError(f"the photograph is too large; at most {MAX_MESSAGE_MB} MiB are taken")
    if int(request.headers.get("content-length") or 0) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(UPLOAD_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlinePassed(f"the photograph did not arrive within {UPLOAD_S:g} s; send a smaller one") from None
    return b"".join(chunks)


async def _failed(_request: Request, _error: Exception) -> Response:
    """What only the log says more of: Starlette raises the error on, once this is sent."""
    return HTMLResponse(error_html(FAILED), HTTPStatus.INTERNAL_SERVER_ERROR)


def _code(error: L2R2Error) -> int:
    if isinstance(error, InputError):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.TOO_MANY_REQUESTS if isinstance(error, Overloaded) else HTTPStatus.BAD_GATEWAY


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = files(__package__).joinpath(name).read_bytes()

    async def give(_: Request) -> Response:
        return Response(content, media_type=TYPES[name])

    return give
