"""An image host on a loopback address that does to its callers what hosts on the internet do, and worse.

Raw sockets, so that it can break HTTP wherever it likes. What it does for which path: ``host_behaviours``. It counts
connections and keeps the requests, so that a test can tell what reached it.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from tests.support.host_behaviours import CLOSE, RESET, script

HANDSHAKE_BYTE = 0x16


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    """With the query."""
    headers: dict[str, str]
    """By name in lower case."""


class ImageHost:
    """``async with ImageHost() as host``, then ``host.url("/good.png")``."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.port = port
        self.tls = tls
        self.elsewhere = ""
        """Where ``/redirect/elsewhere`` leads to."""
        self.requests: list[Request] = []
        self.connections = 0
        self.open_connections = 0
        self.most_open = 0
        """Connections that were open at the same time, at most."""
        self.bytes_sent = 0
        self.conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def url(self, path: str, host: str = "pictures.test") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def count(self) -> Counter[str]:
        """Requests, by path."""
        return Counter(request.path for request in self.requests)

    async def __aenter__(self) -> "ImageHost":
        self.server = await asyncio.start_server(
            self.accept, self.address, self.port, ssl=self.tls, ssl_shutdown_timeout=0.5 if self.tls else None
        )
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.close()
        for task, writer in self.conversations.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self.conversations, return_exceptions=True)
        await self.server.wait_closed()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        self.most_open = max(self.most_open, self.open_connections)
        task = asyncio.ensure_future(self.converse(reader, writer))
        self.conversations[task] = writer
        task.add_done_callback(self.conversations.pop)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.talk(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (OSError, EOFError):
            writer.transport.abort()
        finally:
            self.open_connections -= 1

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        while first:
            if first[0] == HANDSHAKE_BYTE and not self.tls:
                writer.write(b"this host speaks no TLS\n")
                return
            request = read_request(first + await reader.readuntil(b"\r\n\r\n"))
            self.requests.append(request)
            first = await self.answer(request, reader, writer)

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """The first byte of the connection's next request; nothing where there will be none.

        A caller that hangs up is noticed at once, so that open connections are counted right.
        """
        sending = asyncio.ensure_future(self.send(request, writer))
        listening = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and not listening.result():
                return b""
            return await listening if await sending else b""
        finally:
            sending.cancel()
            listening.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)

    async def send(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is kept open for another request."""
        for step in script(request.path.split("?")[0], self.port, self.elsewhere):
            if step == CLOSE:
                return False
            if step == RESET:
                # A linger time of zero makes closing a reset.
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return False
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                self.bytes_sent += len(step)
                writer.write(step)
                await writer.drain()
        return True


def read_request(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return Request(first.split(" ")[1], {name.lower(): value.strip() for name, value in pairs})


@contextmanager
def full_backlog(address: str = "127.0.0.1") -> Iterator[int]:
    """A port at which connecting itself hangs: nobody accepts, and the queue of those who wait is full.

    Linux drops what comes to a full queue, as a firewall does.
    """
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((address, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(16):
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0.1)
            try:
                waiting.connect((address, port))
            except TimeoutError:
                break
        yield port
