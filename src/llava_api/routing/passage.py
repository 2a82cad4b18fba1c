"""One request on its way to a backend, and its answer on the way back, byte for byte."""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from llava_api.errors import ApiError, BadGateway, Draining, EngineStopped, Unavailable
from llava_api.routing.backends import Backend, BackendLost
from llava_api.routing.connections import NETWORK_ERRORS, NOT_SENT_ERRORS, Headers
from llava_api.server.dialects import OLLAMA, dialect_of
from llava_api.server.error_handlers import error_response
from llava_api.server.middleware.availability import STOPPING
from llava_api.server.state import exchange_of
from llava_api.telemetry.record import current

if TYPE_CHECKING:
    from llava_api.routing.proxy import Router

log = logging.getLogger(__name__)

Find = Callable[[Collection[Backend]], AbstractAsyncContextManager[Backend]]

HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
NOT_SENT = HOP_BY_HOP | {
    *(b"host", b"content-length", b"content-encoding", b"expect", b"x-forwarded-for", b"x-forwarded-proto"),
    # The router has judged them (middleware/origin.py, middleware/cors.py); a backend knows another Host.
    *(b"origin", b"sec-fetch-site"),
}
NOT_SENT_BACK = HOP_BY_HOP | {b"date", b"x-request-id", b"request-id"}
"""uvicorn and the exchange's middleware send these themselves, the ids as the backend wrote them."""
MOST_TRIES = 5
MOST_ANSWERING = 2
"""Backends that may be lost while they answer one request: it might be the request that ends them."""
STATUSES = range(200, 600)
NO_ANSWER = "The server of this model sent something that is no answer: its operator finds it in the router's log."
LOST = "The server that was answering has stopped: send your request again."
UNREACHED = "No server could answer this request: send it again in a moment."
EVENTS, LINES = b"text/event-stream", b"application/x-ndjson"


@dataclass
class Passage:
    """An ASGI response."""

    router: "Router"
    request: Request
    body: bytes | bytearray
    find: Find
    """Gives a backend, as ``Backends.place`` does."""
    comments_for: str = ""
    """The model, if the answer is a stream of events, which may begin with comments while a backend is waited for."""
    media: bytes = b""
    """Content type of the answer that has begun."""
    begun: bool = False
    """Whether something of a backend's answer has been sent on."""
    refused: tuple[int, Headers, bytes] | None = None
    """Status, headers and body of the latest answer of a backend that takes no requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError if nothing has been sent."""
        self.send = send
        # It has no time limit: it is ended early if the client leaves, and by ``Router.abandon``.
        work = asyncio.timeout(None)
        watching = asyncio.create_task(end_on_disconnect(receive, work))
        try:
            async with work:
                self.router.passages.add(work)
                try:
                    await self.try_backends()
                finally:
                    self.router.passages.discard(work)
                    watching.cancel()
        except TimeoutError:
            if not work.expired():
                raise
            if self.router.ending:
                await self.fail(Draining(STOPPING))
        except ApiError as error:
            await self.fail(error)

    async def try_backends(self) -> None:
        tried: list[Backend] = []
        answering = 0
        while True:
            commenting = asyncio.create_task(self.comment())
            try:
                async with self.find(tried) as backend:
                    commenting.cancel()
                    await self.pass_to(backend)
                    return
            except BackendLost as lost:
                tried.append(backend)
                answering += lost.was_answering
                log.info("%s: backend %s is lost: %s", current().request_id, backend.name, lost)
                if answering >= MOST_ANSWERING:
                    raise EngineStopped(LOST) from lost
                if len(tried) >= MOST_TRIES:
                    raise Unavailable(UNREACHED) from lost
                self.router.metrics.retry(current())
            finally:
                commenting.cancel()

    async def comment(self) -> None:
        """While a backend is waited for. The request's status is sent with the first comment, as the server does it."""
        await asyncio.sleep(self.router.settings.stream_head_seconds)
        while self.comments_for:
            await self.begin(200, [(b"content-type", EVENTS + b"; charset=utf-8"), (b"cache-control", b"no-cache")])
            await self.piece(ServerSentEvent(comment=f"loading {self.comments_for}", sep="\n").encode(), more=True)
            await asyncio.sleep(self.router.settings.stream_keep_alive_seconds)

    async def pass_to(self, backend: Backend) -> None:
        """Raises BackendLost if nothing of an answer has been sent on, and EngineStopped if something has."""
        request, send = self.request, self.router.connections.request
        try:
            async with send(backend, request.method, target(request), headers_for(request), self.body) as answer:
                status, headers, content = answer.status, answer.raw_headers, answer.content
                if status not in STATUSES:
                    log.error("backend %s answered with the status %d", backend.name, status)
                    raise BadGateway(NO_ANSWER)
                # Held back until its first bytes are there: until then another backend can answer instead.
                piece = await content.readany()
                if status == 503 and refuses_all(headers, piece):
                    # One that is not whole yet is not that of a server of ours.
                    self.refused = (status, headers, piece) if content.at_eof() else None
                    raise BackendLost("it takes no requests now")
                self.begun = True
                current().logged = backend.logs_here
                await self.pass_back(status, headers, piece, more=not content.at_eof())
                while not content.at_eof():
                    piece = await content.readany()
                    await self.piece(piece, more=not content.at_eof())
        except NETWORK_ERRORS as error:
            if self.begun:
                raise EngineStopped(LOST) from error
            was_answering = not isinstance(error, NOT_SENT_ERRORS)
            raise BackendLost(f"{type(error).__name__} {error}", was_answering) from error

    async def pass_back(self, status: int, headers: Headers, body: bytes, more: bool) -> None:
        """``body``: its first piece, if ``more`` come."""
        if not self.media:
            given = next((value for name, value in headers if name.lower() == b"x-request-id"), None)
            if given is not None:
                exchange_of(self.request.scope).request_id = current().request_id = given.decode("latin-1")
            await self.begin(status, end_to_end(headers, NOT_SENT_BACK))
        elif status != 200:
            # Another status has been sent with a comment.
            body = error_event(self.request.scope["path"], body)
        await self.piece(body, more)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not self.media:
            self.media = next((value for name, value in headers if name.lower() == b"content-type"), b"none")
            await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def fail(self, error: ApiError) -> None:
        """Raises it if nothing has been sent. An answer that is no stream is cut off: its client misses the rest."""
        if self.refused is not None and not self.begun:
            await self.pass_back(*self.refused, more=False)
            return
        if not self.media:
            raise error
        body = bytes(error_response(error).body)
        if self.media.startswith((EVENTS, LINES)):
            await self.piece(error_event(self.request.scope["path"], body), more=False)


async def end_on_disconnect(receive: Receive, work: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    end_early(work)


def end_early(work: asyncio.Timeout) -> None:
    if not work.expired():
        work.reschedule(0)


def target(request: Request) -> str:
    query: bytes = request.scope["query_string"]
    return quote(request.scope["path"]) + (f"?{query.decode('latin-1')}" if query else "")


def headers_for(request: Request) -> Headers:
    """Those of the client, its API key too, and its address for a backend that trusts the router as a proxy."""
    headers = end_to_end(request.scope["headers"], NOT_SENT)
    address = exchange_of(request.scope).address
    if address:
        headers.append((b"x-forwarded-for", address.encode("latin-1", "replace")))
        headers.append((b"x-forwarded-proto", request.scope["scheme"].encode()))
    return headers


def end_to_end(headers: Headers, left_out: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers without ``left_out``, and without those of one connection, which its ``Connection`` header names."""
    named = b",".join(value for name, value in headers if name.lower() == b"connection").lower().split(b",")
    dropped = {*left_out, *(name.strip() for name in named)}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def refuses_all(headers: Headers, body: bytes) -> bool:
    """Whether a 503 concerns all requests: its server loads, drains, has lost its engine, or has no connection left.

    Such answers close the connection (``middleware/availability.py``) or name the engine.
    """
    closes = any(name.lower() == b"connection" and value.lower() == b"close" for name, value in headers)
    return closes or b'"engine_stopped"' in body or b'"engine_restarting"' in body


def error_event(path: str, body: bytes) -> bytes:
    """An error's body as the last item of a stream of the path's own API."""
    if dialect_of(path) is OLLAMA:
        return body + b"\n"
    if "/responses" in path:
        error = orjson.loads(body)["error"]
        kept = {name: error.get(name) for name in ("code", "message", "param")}
        body = orjson.dumps({"type": "error", "sequence_number": 0, **kept})
    name = None if "/completions" in path else "error"
    return ServerSentEvent(body.decode(), event=name, sep="\n").encode()
