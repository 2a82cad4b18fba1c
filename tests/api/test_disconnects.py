"""A caller that leaves, on a real socket: the engine's work ends within two seconds."""

import asyncio
import json
import socket
import time

import pytest
import uvicorn
from fastapi import FastAPI

from tests.api.test_chat import CHAT, text_body
from tests.support.scripted_engine import ScriptedEngine


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_engine(app: FastAPI, engine: ScriptedEngine, stream: bool) -> None:
    engine.texts = ("word ",) * 1000
    engine.pause_seconds = 0.05
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    body = json.dumps(text_body(stream=stream)).encode()
    _, writer = await asyncio.open_connection(*listener.getsockname())
    head = f"POST {CHAT} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
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
    server.should_exit = True
    await serving


async def test_leaving_before_the_body_has_come_is_no_fault_of_the_server(
    app: FastAPI, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{{".encode())
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.2)
    assert engine.requests == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    server.should_exit = True
    await serving
