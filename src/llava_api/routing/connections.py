"""Connections to backends: aiohttp's client, which passes headers and bodies on as they are and reuses connections.

Of the clients that were compared (docs/architecture.md) it costs a request the least.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientPayloadError,
    ClientRequest,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
    UnixConnector,
)
from aiohttp.connector import Connection
from yarl import URL

from llava_api.routing.backends import Backend
from llava_api.settings import Settings

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI and aiohttp have them."""

CONNECT_SECONDS = 5.0
LATE_SECONDS = 15.0
"""A backend ends every request by its own --request-timeout-seconds; it counts as lost this long after ours."""
IDLE_SECONDS = 30.0
"""Shorter than a server's own --keep-alive-seconds."""
MOST_HEADER_BYTES = 65_536
"""Of one header of an answer: x-llava-ignored names fields that clients choose."""


class NotAsked(ClientConnectionError):
    """A backend has sent something over a connection that was idle, which is no answer to the next request."""


NOT_SENT_ERRORS = (ClientConnectorError, ConnectionTimeoutError, NotAsked)
"""The request has reached no backend."""
NETWORK_ERRORS = (ClientError, TimeoutError)
"""A connection was not made, ended or stayed silent, or what came over it is not HTTP."""


class BackendRequest(ClientRequest):
    async def send(self, conn: Connection) -> ClientResponse:
        # aiohttp does not look at a connection before it uses it again: the next caller would get what is there.
        if conn.protocol is None or conn.protocol.should_close:
            raise NotAsked("something was sent over an idle connection")
        return await super().send(conn)


class Connections:
    """As many as there are open requests, which ``server/connections.py`` limits."""

    def __init__(self, settings: Settings) -> None:
        self.most_seconds = settings.request_timeout_seconds + LATE_SECONDS
        self.sessions: dict[str, ClientSession] = {}
        """By the path of a Unix socket; "" for all backends that have none."""

    @asynccontextmanager
    async def request(
        self, backend: Backend, method: str, target: str, headers: Headers = (), body: bytes | bytearray = b""
    ) -> AsyncIterator[ClientResponse]:
        """The answer, whose body still comes. Entering and reading raise NETWORK_ERRORS.

        Leaving the block closes the connection if the answer has not been read to its end.
        """
        scheme, _, place = backend.address.partition(":")
        socket_path = place if scheme == "unix" else ""
        sent = [(name.decode(), value.decode(errors="replace")) for name, value in headers]
        if backend.host:
            sent.append(("host", backend.host))
        asked = self.session(socket_path).request(
            method,
            URL(("http://localhost" if socket_path else backend.address) + target, encoded=True),
            headers=sent,
            data=body or None,
            allow_redirects=False,
            server_hostname=backend.host.rpartition(":")[0].strip("[]") or None,
        )
        # Interim answers, or a head that comes by the byte, would keep a connection from being silent.
        async with asyncio.timeout(self.most_seconds) as limit, asked as answer:
            limit.reschedule(None)
            with ending_with_connection(answer):
                yield answer

    def session(self, socket_path: str) -> ClientSession:
        found = self.sessions.get(socket_path)
        if found is None:
            found = self.sessions[socket_path] = ClientSession(
                connector=UnixConnector(socket_path, limit=0, keepalive_timeout=IDLE_SECONDS)
                if socket_path
                else TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ssl=ssl.create_default_context()),
                timeout=ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=self.most_seconds),
                max_line_size=MOST_HEADER_BYTES,
                max_field_size=MOST_HEADER_BYTES,
                request_class=BackendRequest,
                auto_decompress=False,
                cookie_jar=DummyCookieJar(),
                # The client's own are passed on.
                skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            )
        return found

    async def get(self, backend: Backend, path: str, headers: Headers = ()) -> tuple[int, bytes]:
        """Status and body."""
        async with self.request(backend, "GET", path, headers) as answer:
            return answer.status, await answer.read()

    async def close(self) -> None:
        for session in self.sessions.values():
            await session.close()


@contextmanager
def ending_with_connection(answer: ClientResponse) -> Iterator[None]:
    """Reading the body raises ClientPayloadError once the connection has ended before the body.

    aiohttp closes a connection over which a wrong chunk comes, but would wait for the rest of the body for ever.
    """

    def end(_: object = None) -> None:
        if not answer.content.is_eof() and answer.content.exception() is None:
            answer.content.set_exception(ClientPayloadError("the connection ended before the answer"))

    protocol = answer.connection.protocol if answer.connection is not None else None
    closed = protocol.closed if protocol is not None else None
    if closed is None:
        # The answer has come whole, or the connection has ended.
        end()
        yield
        return
    closed.add_done_callback(end)
    try:
        yield
    finally:
        closed.remove_done_callback(end)
