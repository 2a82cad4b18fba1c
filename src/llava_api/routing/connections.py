"""Connections to backends, kept open between requests."""

import socket
from collections.abc import Collection
from typing import Any

import httpcore2

from llava_api.routing.backends import Backend
from llava_api.settings import Settings

Headers = list[tuple[bytes, bytes]]

NOT_SENT_ERRORS = (httpcore2.ConnectError, httpcore2.ConnectTimeout)
NETWORK_ERRORS = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)
CONNECT_SECONDS = 5.0
LATE_SECONDS = 15.0
"""A backend ends every request by its own --request-timeout-seconds; it counts as lost this long after ours."""


class Connections:
    """Connections to backends, kept open between requests."""

    def __init__(self, settings: Settings) -> None:
        self.timeouts = {
            "connect": CONNECT_SECONDS,
            "write": LATE_SECONDS,
            "read": settings.request_timeout_seconds + LATE_SECONDS,
        }
        self.by_address: dict[str, httpcore2.AsyncConnectionPool] = {}

    def pool(self, address: str) -> httpcore2.AsyncConnectionPool:
        found = self.by_address.get(address)
        if found is None:
            path = address.removeprefix("unix:") if address.startswith("unix:") else None
            # The kernel notices a machine that has vanished.
            probing = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
            found = self.by_address[address] = httpcore2.AsyncConnectionPool(
                max_connections=None,
                max_keepalive_connections=64,
                # Shorter than a server's own --keep-alive-seconds.
                keepalive_expiry=30.0,
                uds=path,
                socket_options=None if path is not None else probing,
            )
        return found

    async def send(
        self, backend: Backend, method: str, target: str, headers: Headers, body: bytes = b""
    ) -> httpcore2.Response:
        """The answer without its body; ``aclose`` frees its connection. Raises httpcore2's errors."""
        base = "http://localhost" if backend.address.startswith("unix:") else backend.address
        host = backend.host or base.partition("://")[2]
        extensions: dict[str, Any] = {"timeout": self.timeouts}
        if backend.host:
            extensions["sni_hostname"] = backend.host.rpartition(":")[0].strip("[]")
        asked = httpcore2.Request(
            method, base + target, headers=[(b"host", host.encode()), *headers], content=body, extensions=extensions
        )
        return await self.pool(backend.address).handle_async_request(asked)

    async def forget(self, kept: Collection[str]) -> None:
        """Close the connections to backends that are gone, unless a request still uses them."""
        for address in self.by_address.keys() - set(kept):
            if all(connection.is_idle() for connection in self.by_address[address].connections):
                await self.by_address.pop(address).aclose()

    async def close(self) -> None:
        for pool in self.by_address.values():
            await pool.aclose()
