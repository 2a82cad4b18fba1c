"""Connections to backends, kept open between requests, and parsed by httptools, as uvicorn parses those of clients.

httpx and httpcore take half a millisecond of CPU time for a request, more than all else that the router does.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Any

import httptools

from llava_api.routing.backends import Backend
from llava_api.settings import Settings

Headers = list[tuple[bytes, bytes]]

CONNECT_SECONDS = 5.0
LATE_SECONDS = 15.0
"""A backend ends every request by its own --request-timeout-seconds; it counts as lost this long after ours."""
IDLE_SECONDS = 30.0
"""Shorter than a server's own --keep-alive-seconds."""
MOST_IDLE = 64
READ_AHEAD_BYTES = 262_144
"""Of an answer that its client does not read; then the backend waits."""

MOST_HEAD_BYTES = 131_072
"""Of an answer's status and headers, together with the interim answers before it."""


class ConnectionBroken(Exception):
    """A connection ended or stayed silent, or what came over it is not HTTP."""


class NotConnected(ConnectionBroken):
    """No request has been sent."""


NOT_SENT_ERRORS = (NotConnected,)
NETWORK_ERRORS = (ConnectionBroken,)


class Answer(asyncio.Protocol):
    """A connection, and the answer to its current request. httptools calls the methods that begin with ``on_``.

    ``idle``: where the connection waits for another request.
    """

    def __init__(self, read_seconds: float, idle: list["Answer"]) -> None:
        self.read_seconds = read_seconds
        self.idle = idle
        self.broken = ""
        """Why the connection is of no use any more."""
        self.idle_since = time.monotonic()
        """0 while a request is answered."""
        self.waiter: asyncio.Future[None] | None = None

    def begin(self, request: bytes, body: bytes, *, without_body: bool) -> None:
        """``without_body``: the answer is that to HEAD."""
        self.idle_since = 0.0
        self.parser = httptools.HttpResponseParser(self)
        self.without_body = without_body
        self.status = 0
        self.headers: Headers = []
        self.head_is_complete = self.is_complete = self.stays_open = self.paused = False
        self.pieces: deque[bytes] = deque()
        self.held_bytes = self.head_bytes = 0
        self.transport.write(request)
        if body:
            self.transport.write(body)

    def on_message_begin(self) -> None:
        if self.head_is_complete:
            # The rest of it must not become the answer to the next request.
            raise ValueError("it answered twice")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_is_complete:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.stays_open = self.parser.should_keep_alive()
        # An interim answer (1xx) comes before the answer itself.
        self.head_is_complete = self.status >= 200
        self.is_complete = self.head_is_complete and self.without_body

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self.held_bytes += len(body)

    def on_message_complete(self) -> None:
        self.is_complete = self.head_is_complete
        if not self.head_is_complete:
            self.headers = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.idle_since:
            self.fail("it sent something that was not asked for")
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(str(error))
        self.head_bytes += 0 if self.head_is_complete else len(data)
        if self.head_bytes > MOST_HEAD_BYTES:
            self.fail("its headers do not end")
        if self.held_bytes > READ_AHEAD_BYTES and not self.paused:
            self.paused = True
            self.transport.pause_reading()
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.broken = self.broken or str(error or "the connection was closed")
        self.wake()

    def fail(self, reason: str) -> None:
        self.broken = reason
        self.transport.abort()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def more(self) -> None:
        """Wait until something has come. Raises ConnectionBroken."""
        if self.broken:
            raise ConnectionBroken(self.broken)
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self.read_seconds):
                await self.waiter
        except TimeoutError as error:
            raise ConnectionBroken(f"silent for {self.read_seconds:g} s") from error

    @property
    async def stream(self) -> AsyncIterator[bytes]:
        """The pieces of the body, as they came."""
        while True:
            while self.pieces:
                piece = self.pieces.popleft()
                self.held_bytes -= len(piece)
                yield piece
            if self.is_complete:
                return
            if self.paused:
                self.paused = False
                self.transport.resume_reading()
            await self.more()

    async def aread(self) -> bytes:
        return b"".join([piece async for piece in self.stream])

    async def aclose(self) -> None:
        """Keep the connection for another request, or close it if the answer has not been read to its end."""
        read = self.is_complete and not self.pieces and not self.without_body and not self.paused
        if self.broken or not read or not self.stays_open or len(self.idle) >= MOST_IDLE:
            self.fail("given up")
        else:
            self.idle_since = time.monotonic()
            self.idle.append(self)


class Connections:
    def __init__(self, settings: Settings) -> None:
        self.read_seconds = settings.request_timeout_seconds + LATE_SECONDS
        self.idle: dict[str, list[Answer]] = {}
        """By the backend's address; the latest used comes last."""
        self.tls = ssl.create_default_context()

    async def send(self, backend: Backend, method: str, target: str, headers: Headers, body: bytes = b"") -> Answer:
        """The answer, whose body still comes; ``aclose`` frees its connection. Raises ConnectionBroken."""
        answer = await self.connection(backend)
        host = backend.host or backend.address.partition("://")[2] or "localhost"
        lines = [f"{method} {target} HTTP/1.1\r\nhost: {host}".encode()]
        lines += [name + b": " + value for name, value in headers]
        answer.begin(b"\r\n".join([*lines, b"", b""]), body, without_body=method == "HEAD")
        try:
            while not answer.head_is_complete:
                await answer.more()
        except BaseException:
            answer.fail("given up")
            raise
        return answer

    async def connection(self, backend: Backend) -> Answer:
        idle = self.idle.setdefault(backend.address, [])
        while idle:
            found = idle.pop()
            if not found.broken and time.monotonic() - found.idle_since < IDLE_SECONDS:
                return found
            found.transport.abort()
        loop, make = asyncio.get_running_loop(), partial(Answer, self.read_seconds, idle)
        scheme, _, place = backend.address.partition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if scheme == "unix":
                    return (await loop.create_unix_connection(make, place))[1]
                host, _, port = place.removeprefix("//").rpartition(":")
                name = backend.host.rpartition(":")[0] or host
                secure: dict[str, Any] = (
                    {} if scheme == "http" else {"ssl": self.tls, "server_hostname": name.strip("[]")}
                )
                transport, made = await loop.create_connection(make, host.strip("[]"), int(port), **secure)
        except (OSError, TimeoutError) as error:
            raise NotConnected(str(error) or f"no connection in {CONNECT_SECONDS:g} s") from error
        # The kernel notices a machine that has vanished.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made

    async def forget(self, kept: Collection[str]) -> None:
        """Close the connections to backends that are gone, unless a request still uses them."""
        for address in self.idle.keys() - set(kept):
            while self.idle[address]:
                self.idle[address].pop().transport.abort()

    async def close(self) -> None:
        await self.forget([])
