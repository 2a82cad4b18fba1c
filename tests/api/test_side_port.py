"""The second port: metrics and health without a key, nothing else, from before the model is there until the end."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_api.server.side_port import MAX_CONNECTIONS, side_port
from llava_api.settings import Settings
from tests.api.test_chat import CHAT, text_body
from tests.support.endpoints import ALL, PROBES, example_address
from tests.support.metrics_page import read_page
from tests.support.running_server import HEALTH, Connection
from tests.support.scripted_engine import ScriptedEngine

ANNE = {"authorization": "Bearer sk-llava-for-anne-0123456789"}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"api_key": ["anne=sk-llava-for-anne-0123456789"], "metrics": "off"}


def bound() -> tuple[socket.socket, str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_metrics_and_health_and_nothing_else(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post(CHAT, json=text_body(), headers=ANNE)
    listener, address = bound()
    async with side_port(app, listener, Settings()), httpx.AsyncClient(base_url=address) as side:
        page = read_page((await side.get("/metrics")).text)
        # The main server's, which has none of them on its own port here.
        assert page.value("llava_api_completion_tokens_total", model="tiny", key="anne") == 3
        assert (await client.get("/metrics", headers=ANNE)).status_code == 404
        for path in PROBES:
            assert (await side.get(path)).status_code == 200
        others = [example_address(endpoint) for endpoint in ALL if not endpoint.probe]
        for path in (*others, "/", "/metrics/x"):
            for method in ("GET", "POST"):
                reply = await side.request(method, path, headers=ANNE, json=text_body() if method == "POST" else None)
                assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
                assert reply.headers["x-request-id"].startswith("req_")
    async with httpx.AsyncClient() as late:
        with pytest.raises(httpx.ConnectError):
            await late.get(f"{address}/metrics")


async def test_it_answers_before_the_model_is_there(app: FastAPI, engine: ScriptedEngine) -> None:
    app.state.loaded = False
    listener, address = bound()
    async with side_port(app, listener, Settings()), httpx.AsyncClient(base_url=address) as side:
        assert (await side.get("/health/live")).status_code == 200
        assert (await side.get("/health/ready")).status_code == 503
        assert "llava_api_build_info" in (await side.get("/metrics")).text
        app.state.loaded = True
        assert (await side.get("/health/ready")).status_code == 200
        engine.dead = True
        assert (await side.get("/health/ready")).status_code == 503


async def test_its_end_waits_for_nobody(app: FastAPI) -> None:
    listener, address = bound()
    host, port = address.removeprefix("http://").split(":")
    async with asyncio.timeout(10):
        async with side_port(app, listener, Settings()):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readline()
        # An open connection without a request does not hold it up.
        writer.close()
        await writer.wait_closed()


async def test_without_a_port_nothing_is_done(app: FastAPI) -> None:
    before = len(asyncio.all_tasks())
    async with side_port(app, None, Settings()):
        assert len(asyncio.all_tasks()) == before


async def test_silent_connections_keep_no_probe_out(app: FastAPI) -> None:
    listener, _ = bound()
    callers: list[Connection] = []

    async def call() -> Connection:
        callers.append(Connection(*await asyncio.open_connection(*listener.getsockname())))
        return callers[-1]

    async with side_port(app, listener, Settings()):
        for _ in range(2 * MAX_CONNECTIONS):
            await call()
        assert (await (await call()).ask(HEALTH)).status == 200
        for caller in callers:
            await caller.close()


async def test_headers_are_bounded_and_tls_is_the_main_ports(app: FastAPI) -> None:
    listener, address = bound()
    settings = Settings(max_header_bytes=4096, tls_certificate_file="none.crt", tls_key_file="none.key")
    async with side_port(app, listener, settings), httpx.AsyncClient(base_url=address) as side:
        caller = Connection(*await asyncio.open_connection(*listener.getsockname()))
        answer = await caller.ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 5000)
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        await caller.close()
        page = read_page((await side.get("/metrics")).text)
        assert page.value("llava_api_rejections_total", reason="headers_too_large") == 1
