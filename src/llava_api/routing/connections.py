"""Connections to backends: aiohttp's client, which passes headers and bodies on as they are and reuses connections.

Of the clients that were compared (docs/architecture.md) it costs a request the least.
"""

import ssl
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
    UnixConnector,
)
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
NOT_SENT_ERRORS = (ClientConnectorError, ConnectionTimeoutError)
"""The request has reached no backend."""
NETWORK_ERRORS = (ClientError,)
"""A connection was not made, ended or stayed silent, or what came over it is not HTTP."""


class Connections:
    """As many as there are open requests, which ``server/connections.py`` limits."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = ClientTimeout(
            sock_connect=CONNECT_SECONDS, sock_read=settings.request_timeout_seconds + LATE_SECONDS
        )
        self.sessions: dict[str, ClientSession] = {}
        """By the path of a Unix socket; "" for all backends that have none."""

    def request(
        self, backend: Backend, method: str, target: str, headers: Headers = (), body: bytes | bytearray = b""
    ) -> AbstractAsyncContextManager[ClientResponse]:
        """The answer, whose body still comes. Entering and reading raise NETWORK_ERRORS.

        Leaving the block closes the connection if the answer has not been read to its end.
        """
        scheme, _, place = backend.address.partition(":")
        socket_path = place if scheme == "unix" else ""
        sent = [(name.decode(), value.decode(errors="replace")) for name, value in headers]
        if backend.host:
            sent.append(("host", backend.host))
        return self.session(socket_path).request(
            method,
            URL(("http://localhost" if socket_path else backend.address) + target, encoded=True),
            headers=sent,
            data=body or None,
            allow_redirects=False,
            server_hostname=backend.host.rpartition(":")[0].strip("[]") or None,
        )

    def session(self, socket_path: str) -> ClientSession:
        found = self.sessions.get(socket_path)
        if found is None:
            found = self.sessions[socket_path] = ClientSession(
                connector=UnixConnector(socket_path, limit=0, keepalive_timeout=IDLE_SECONDS)
                if socket_path
                else TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ssl=ssl.create_default_context()),
                timeout=self.timeout,
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
