"""The app on a real socket with the product's own server configuration, and connections that send what they like."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette

from llava_api.server.http_server import make_config
from llava_api.server.listening import listen
from llava_api.server.services import Services
from llava_api.server.tls import Certificates, open_certificates
from llava_api.settings import Settings

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"

Leaving = Literal["FIN", "RST", "half"]
"""How a caller leaves: it closes the connection, resets it, or closes only its sending side."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of an answer in the API's own shape."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"].startswith("req_")
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def answer(self, seconds: float = 5, has_body: bool = True) -> Answer:
        """The next answer on the connection, which has a Content-Length."""
        async with asyncio.timeout(seconds):
            status, headers = await self.head()
            body = await self.reader.readexactly(int(headers["content-length"])) if has_body else b""
            return Answer(status, headers, body)

    async def ask(self, request: bytes, seconds: float = 5) -> Answer:
        await self.send(request)
        return await self.answer(seconds)

    async def end(self, seconds: float = 5) -> bytes:
        """What still arrives until the server closes the connection."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def leave(self, how: Leaving) -> None:
        if how == "half":
            self.writer.write_eof()
            return
        if how == "RST":
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        await self.close()

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()


@dataclass
class RunningServer:
    settings: Settings
    address: Any
    """(host, port), or the path of a Unix socket."""
    server: uvicorn.Server
    certificates: Certificates | None
    connections: list[Connection] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        host, port = self.address[:2]
        return f"http://{host}:{port}/v1"

    async def connect(self, **options: Any) -> Connection:
        """A connection that is closed before the server ends. ``options`` are those of asyncio.open_connection."""
        if isinstance(self.address, str):
            made = Connection(*await asyncio.open_unix_connection(self.address, **options))
        else:
            made = Connection(*await asyncio.open_connection(*self.address[:2], **options))
        self.connections.append(made)
        return made

    async def ask(self, request: bytes, seconds: float = 5) -> Answer:
        return await (await self.connect()).ask(request, seconds)

    async def is_well(self) -> bool:
        return (await self.ask(HEALTH)).status == 200


class PromptServer(uvicorn.Server):
    """Ends at once if nothing is open: uvicorn looks ten times a second, twice for each end."""

    async def main_loop(self) -> None:
        for step in count():
            if step % 20 == 0:
                await self.on_tick(step // 20)
            if self.should_exit:
                return
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for _ in range(20):
            if not self.server_state.connections and not self.server_state.tasks:
                break
            await asyncio.sleep(0.001)
        else:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
            await server.wait_closed()
        for listener in sockets or []:
            listener.close()
        await self.lifespan.shutdown()


@asynccontextmanager
async def serve_app(
    app: Starlette, listener: socket.socket | None = None, settings: Settings | None = None, **others: Any
) -> AsyncIterator[RunningServer]:
    """Serve the app at ``listener``, or at a free port, with ``settings`` or its own. ``others`` are make_config's."""
    if settings is None:
        services: Services = app.state.services
        settings = services.settings
    if listener is None:
        listener = listen(settings if settings.unix_socket else settings.model_copy(update={"port": 0}))
    address = listener.getsockname()
    certificates = open_certificates(settings)
    server = PromptServer(make_config(app, settings, lifespan="off", certificates=certificates, **others))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0)
    running = RunningServer(settings, address, server, certificates)
    try:
        yield running
    finally:
        for connection in running.connections:
            await connection.close()
        server.should_exit = True
        await serving


def post(path: str, body: bytes | dict[str, Any], *headers: str, length: int | None = None) -> bytes:
    """A POST with its body; ``length`` announces another length."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
