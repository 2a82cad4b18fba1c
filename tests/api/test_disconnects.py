"""A caller that leaves, on a real socket: the engine's work ends within two seconds."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from llava_api.images.load import MeasuredImage, RenderedImage
from llava_api.server.services import Services
from tests.api.test_chat import CHAT, RED, picture_message, text_body
from tests.support.scripted_engine import ScriptedEngine


@asynccontextmanager
async def connection(app: FastAPI) -> AsyncIterator[asyncio.StreamWriter]:
    """A raw connection to the app behind uvicorn; closed by the test."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    _, writer = await asyncio.open_connection(*listener.getsockname())
    yield writer
    server.should_exit = True
    await serving


def head(length: int) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_engine(app: FastAPI, engine: ScriptedEngine, stream: bool) -> None:
    engine.texts = ("word ",) * 1000
    engine.pause_seconds = 0.05
    body = json.dumps(text_body(stream=stream)).encode()
    async with connection(app) as writer:
        writer.write(head(len(body)) + body)
        deadline = time.monotonic() + 5
        while engine.unfinished == 0 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert engine.unfinished == 1
        writer.close()
        await writer.wait_closed()
        deadline = time.monotonic() + 2
        while engine.unfinished and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert engine.unfinished == 0


async def test_leaving_before_the_body_has_come_is_no_fault_of_the_server(
    app: FastAPI, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with connection(app) as writer:
        writer.write(head(100) + b"{")
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.2)
        assert engine.requests == []
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_while_pictures_are_prepared_never_reaches_the_engine(
    app: FastAPI, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    services: Services = app.state.services
    decoding, go_on = threading.Event(), threading.Event()
    render = services.preparer.images.render_data

    def slow_render(image: MeasuredImage) -> RenderedImage:
        decoding.set()
        go_on.wait(5)
        return render(image)

    monkeypatch.setattr(services.preparer.images, "render_data", slow_render)
    message = picture_message("What is it?", RED)
    body = json.dumps({"model": "tiny", "messages": [message], "stream": stream}).encode()
    async with connection(app) as writer:
        writer.write(head(len(body)) + body)
        assert await asyncio.to_thread(decoding.wait, 5)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.2)
        go_on.set()
        await asyncio.sleep(0.3)
        assert engine.requests == []
