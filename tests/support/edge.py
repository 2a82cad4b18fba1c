"""The server as it is run, on a free port or a Unix socket, and callers that write what they like on it."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI

from llava_api.server.http_server import make_config
from llava_api.server.listening import listen
from llava_api.server.services import Services
from llava_api.settings import Settings

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """Of an answer in the API's own shape."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"].startswith("req_")
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@dataclass
class Caller:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
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
        """What still comes until the server closes."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()


@dataclass
class Edge:
    settings: Settings
    address: Any
    server: uvicorn.Server
    callers: list[Caller] = field(default_factory=list)

    async def call(self, **options: Any) -> Caller:
        if isinstance(self.address, str):
            made = Caller(*await asyncio.open_unix_connection(self.address, **options))
        else:
            made = Caller(*await asyncio.open_connection(*self.address[:2], **options))
        self.callers.append(made)
        return made

    async def ask(self, request: bytes, seconds: float = 5) -> Answer:
        return await (await self.call()).ask(request, seconds)

    async def is_well(self) -> bool:
        return (await self.ask(HEALTH)).status == 200


@asynccontextmanager
async def edge_of(app: FastAPI, listener: socket.socket | None = None, **others: Any) -> AsyncIterator[Edge]:
    services: Services = app.state.services
    settings = services.settings
    if listener is None:
        listener = listen(settings if settings.unix_socket else settings.model_copy(update={"port": 0}))
    address = listener.getsockname()
    server = uvicorn.Server(make_config(app, settings, lifespan="off", **others))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    edge = Edge(settings, address, server)
    try:
        yield edge
    finally:
        for caller in edge.callers:
            await caller.close()
        server.should_exit = True
        await serving


async def until(true: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.01)


def post(path: str, body: bytes | dict[str, Any], *headers: str, length: int | None = None) -> bytes:
    """A POST with its body; ``length`` announces another."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
