"""One request on its way to a backend, and its answer on the way back, byte for byte."""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
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

Answer = tuple[int, Headers, bytes]
"""Status, headers and body."""
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
MOST_STATUS = 599
NO_ANSWER = "The server of this model sent something that is no answer: its operator finds it in the router's log."
LOST = "The server that was answering has stopped: send your request again."
UNREACHED = "No server could answer this request: send it again in a moment."
EVENTS, LINES = b"text/event-stream", b"application/x-ndjson"


class Passage:
    """An ASGI response. ``find`` gives a backend, as ``Backends.place`` does.

    ``comments_for``: the model's name, if the request is answered by events, among which comments may be sent while
    its backend is waited for.
    """

    def __init__(self, router: "Router", request: Request, body: bytes, find: Find, comments_for: str = "") -> None:
        self.router = router
        self.request = request
        self.body = body
        self.find = find
        self.comments_for = comments_for
        self.media = b""
        """Content type of the answer that has begun."""
        self.begun = False
        """Whether something of a backend's answer has been sent on."""
        self.refused: Answer | None = None
        """The latest answer of a backend that takes no requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError before anything has been sent."""
        self.send = send
        # It has no time limit of its own: a client that leaves ends it, or ``Router.abandon``.
        work = asyncio.timeout(None)
        watching = asyncio.create_task(cancel_on_disconnect(receive, work))
        self.router.passages.add(work)
        try:
            try:
                async with work:
                    await self.try_backends()
            except TimeoutError:
                if not work.expired():
                    raise
                if self.router.ending:
                    raise Draining(STOPPING) from None
        except ApiError as error:
            if self.refused is not None and not self.begun:
                await self.pass_back(*self.refused)
                await self.end()
            elif not self.media:
                raise
            else:
                await self.fail(error)
        finally:
            self.router.passages.discard(work)
            watching.cancel()

    async def try_backends(self) -> None:
        tried: list[Backend] = []
        answering = 0
        while True:
            commenting = asyncio.create_task(self.comment()) if self.comments_for else None
            try:
                async with self.find(tried) as backend:
                    if commenting is not None:
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
                if commenting is not None:
                    commenting.cancel()

    async def comment(self) -> None:
        """While a backend is waited for. The request's status is sent with the first comment, as the server does it."""
        await asyncio.sleep(self.router.settings.stream_head_seconds)
        await self.begin(200, [(b"content-type", EVENTS + b"; charset=utf-8"), (b"cache-control", b"no-cache")])
        while True:
            await self.piece(ServerSentEvent(comment=f"loading {self.comments_for}", sep="\n").encode())
            await asyncio.sleep(self.router.settings.stream_keep_alive_seconds)

    async def pass_to(self, backend: Backend) -> None:
        """Raises BackendLost if nothing of an answer has been sent on, and EngineStopped if something has."""
        request = self.request
        sent = headers_for(request)
        try:
            async with self.router.connections.request(
                backend, request.method, target(request), sent, self.body
            ) as answer:
                if not 200 <= answer.status <= MOST_STATUS:
                    log.error("backend %s answered with the status %d", backend.name, answer.status)
                    raise BadGateway(NO_ANSWER)
                # Held back until its first bytes are there: until then another backend can answer instead.
                first = await answer.content.readany()
                if answer.status == 503 and refuses_all(answer.raw_headers, first):
                    if answer.content.at_eof():
                        self.refused = answer.status, answer.raw_headers, first
                    raise BackendLost("it takes no requests now")
                self.begun = True
                current().logged = backend.logs_here
                await self.pass_back(answer.status, answer.raw_headers, first)
                async for piece in answer.content.iter_any():
                    await self.piece(piece)
        except NETWORK_ERRORS as error:
            if self.begun:
                raise EngineStopped(LOST) from error
            was_answering = not isinstance(error, NOT_SENT_ERRORS)
            raise BackendLost(f"{type(error).__name__} {error}", was_answering) from error
        await self.end()

    async def pass_back(self, status: int, headers: Headers, first: bytes) -> None:
        if self.media and status != 200:
            # The status has been sent with a comment.
            first = error_event(self.request.scope["path"], first)
        elif not self.media:
            exchange = exchange_of(self.request.scope)
            given = next((value for name, value in headers if name.lower() == b"x-request-id"), None)
            if given is not None:
                exchange.request_id = current().request_id = given.decode("latin-1")
            await self.begin(status, end_to_end(headers, NOT_SENT_BACK))
        await self.piece(first)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not self.media:
            self.media = next((value for name, value in headers if name.lower() == b"content-type"), b"none")
            await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes) -> None:
        if body:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """End an answer that has begun. One that is no stream is cut off: its client misses the rest."""
        body = bytes(error_response(error).body)
        if self.media.startswith((EVENTS, LINES)):
            await self.piece(error_event(self.request.scope["path"], body))
            await self.end()


def target(request: Request) -> str:
    query: bytes = request.scope["query_string"]
    path = quote(request.scope["path"], safe="/:@!$&'()*+,;=~")
    return f"{path}?{query.decode('latin-1')}" if query else path


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


async def cancel_on_disconnect(receive: Receive, work: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.reschedule(0)


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
