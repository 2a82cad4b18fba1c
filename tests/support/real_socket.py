"""The app behind uvicorn on a real socket, and callers that hang up as callers do."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

Leaving = Literal["FIN", "RST", "half"]
"""Closed; reset; the sending side alone closed."""


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(
        self, path: str, body: Any, missing_bytes: int = 0, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """A request in JSON, whose last bytes may be missing."""
        content = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(content)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        self.writer.write(head.encode() + content[: len(content) - missing_bytes])

    async def answer(self) -> bytes:
        """The body of the next answer, which has a Content-Length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        return await asyncio.wait_for(self.reader.readexactly(int(length[1])), 10)

    async def leave(self, how: Leaving) -> None:
        if how == "half":
            self.writer.write_eof()
            return
        if how == "RST":
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.writer.transport.abort()
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Door:
    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.base_url = f"http://{address[0]}:{address[1]}/v1"

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        caller = Caller(*await asyncio.open_connection(*self.address))
        try:
            yield caller
        finally:
            await caller.leave("FIN")


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[Door]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Door(listener.getsockname())
    finally:
        server.should_exit = True
        await serving
