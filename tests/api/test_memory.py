"""Many large bodies at once: memory stays within its budget, and who finds no room is told to come again."""

import asyncio
import base64
import io
import json
import os
import re
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from PIL import Image

from llava_api.chat.response_store import size_of
from llava_api.server.services import Services
from tests.api.test_chat import CHAT, RED, image_message, text_body
from tests.api.test_errors import error_of
from tests.support.at_rest import held
from tests.support.endpoints import EXAMPLE_BODIES
from tests.support.running_server import post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.scripted_server import scripted_server
from tests.support.waiting import until

BUDGET = 600_000_000
WORK = 100_000_000
"""Of the four threads on what they have in hand: a file out of its base64, an image out of its file."""
BODIES = 200
CALLERS = 8
SIDE = 2230
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def large_body() -> bytes:
    """20 MB, most of them an image without compression."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(buffer, "BMP")
    url = f"data:image/bmp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return json.dumps({"model": "tiny", "messages": [image_message("What?", url)]}).encode()


async def send_in_steps(port: int, body: bytes, chunked: bool, caller: int = 0) -> tuple[int, str]:
    """Status and error code. What the server does not want to read is not sent."""
    address = (f"127.0.0.{1 + caller % CALLERS}", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: test\r\n{length}\r\n\r\n".encode())
    answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    step = 500_000
    for start in range(0, len(body), step):
        part = body[start : start + step]
        writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        try:
            await writer.drain()
        except ConnectionError:
            break
        if answer.done():
            break
    else:
        writer.write(b"0\r\n\r\n" if chunked else b"")
    head = (await answer).decode()
    size = re.search(r"content-length: (\d+)", head)
    assert size is not None
    error = json.loads(await reader.readexactly(int(size[1]))).get("error", {})
    assert ("retry-after" in head) == (" 503 " in head)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), error.get("code", "")


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
async def test_two_hundred_large_bodies_at_once(tmp_path: Path, chunked: bool) -> None:
    settings = {
        "max_inflight_bytes": BUDGET,
        "max_body_bytes": 25_000_000,
        "max_request_image_bytes": 20_000_000,
        "image_threads": 2,
        "image_cache_bytes": 0,
    }
    body = large_body()
    with scripted_server(tmp_path / "model", **settings) as (port, pid):
        assert (await send_in_steps(port, body, chunked))[0] == 200
        before, most = resident(pid), 0
        asking = [asyncio.create_task(send_in_steps(port, body, chunked, number)) for number in range(BODIES)]
        while not all(task.done() for task in asking):
            most = max(most, resident(pid))
            await asyncio.sleep(0.005)
        ends = Counter([task.result() for task in asking])
        assert set(ends) == {(200, ""), (503, "memory_full")}
        assert ends[200, ""] >= 8
        assert most - before < BUDGET + WORK
        assert (await send_in_steps(port, body, chunked))[0] == 200


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {
        "max_body_bytes": 25_000_000,
        "max_image_bytes": 20_000_000,
        "max_image_pixels": 64_000_000,
        "max_inflight_bytes": 100_000_000,
        "max_running_answers": 1,
        "max_images_per_request": 8,
        "image_cache_bytes": 0,
        "allowed_media_path": ["/"],
    }


@pytest.fixture
def services(app: FastAPI) -> Services:
    found: Services = app.state.services
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waits_for_the_engine_holds_the_pixels_alone(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine, services: Services, stream: bool
) -> None:
    """Twenty bodies of 20 MB find room one after the other in a budget of 100 MB, because nothing of them is kept."""
    body = large_body().replace(b'"model"', b'"stream": %s, "model"' % json.dumps(stream).encode(), 1)
    engine.pause_seconds = 60
    tracemalloc.start()
    try:

        async def content() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 500_000):
                yield body[start : start + 500_000]

        before = tracemalloc.get_traced_memory()[0]
        asking = []
        length = {"content-length": str(len(body))}
        for number in range(20):
            asking.append(asyncio.create_task(client.post(CHAT, content=content(), headers=length)))
            await until(lambda: services.admission.running + services.admission.waiting == len(asking), 20)
            assert services.memory.held_bytes == (number + 1) * engine.requests[0].images[0].pixels.nbytes
        assert tracemalloc.get_traced_memory()[0] - before < len(body)
    finally:
        tracemalloc.stop()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    await until(lambda: held(app) == {})


async def test_a_body_that_finds_no_room_is_refused_before_it_comes(app: FastAPI, services: Services) -> None:
    services.memory.max_bytes = 1000
    async with serve_app(app) as server:
        error = (await server.ask(post(CHAT, text_body("x" * 600))[:-600])).error
        assert (error["code"], error["type"]) == ("memory_full", "server_error")
    async with serve_app(app) as server:
        assert b"A red circle." in (await server.ask(post(CHAT, text_body()))).body
    assert held(app) == {}


async def test_announced_bodies_leave_room_for_those_that_come(app: FastAPI, services: Services) -> None:
    services.memory.max_bytes = 60_000_000
    async with serve_app(app) as server:
        for _ in range(8):
            await (await server.connect()).send(post(CHAT, b"", length=20_000_000))
        await until(lambda: services.limiter.at_once.total() == 8)
        assert b"A red circle." in (await server.ask(post(CHAT, text_body()))).body
        assert services.memory.held_bytes == 0
    await until(lambda: held(app) == {})


@pytest.mark.parametrize("path", EXAMPLE_BODIES)
async def test_everything_is_given_back(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine, path: str
) -> None:
    body = EXAMPLE_BODIES[path]
    if "messages" in body:
        body = {**body, "messages": [image_message("What?", RED)]}
    for fail_at in (None, 0, 1):
        engine.fail_at = fail_at
        for more in ({}, {"stream": path != "/v1/explain"}, {"model": "unknown"}, {"temperature": "warm"}):
            await client.post(path, json={**body, **more})
            assert held(app) == {}
    await client.post(path, content=b"{")
    await client.post(path, content=b" " * 26_000_000)
    assert held(app) == {}


async def test_files_from_elsewhere_are_charged(
    app: FastAPI, client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    file = tmp_path / "large.bmp"
    Image.new("RGB", (1000, 1000), "red").save(file)
    body = {"model": "tiny", "messages": [image_message("What?", *[file.as_uri()] * 3)]}
    services.memory.max_bytes = 8_000_000
    reply = await client.post(CHAT, json=body)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "memory_full")
    services.memory.max_bytes = 10_000_000
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert held(app) == {}


class TestKeptResponses:
    """A few bytes of ``previous_response_id`` stand for megabytes."""

    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {
            "max_body_bytes": 25_000_000,
            "max_image_bytes": 20_000_000,
            "max_inflight_bytes": 400_000_000,
            "max_running_answers": 1,
            "max_image_pixels": 4_000_000,
            "response_store_bytes": 100_000_000,
        }

    @pytest_asyncio.fixture
    async def kept(self, client: httpx.AsyncClient) -> str:
        buffer = io.BytesIO()
        Image.new("RGB", (1500, 1500), "red").save(buffer, "BMP")
        url = f"data:image/bmp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        reply = await client.post("/v1/responses", json={"model": "tiny", "input": items})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    @pytest.mark.parametrize("store", [False, True])
    async def test_who_waits_for_the_engine_holds_no_second_conversation(
        self,
        app: FastAPI,
        client: httpx.AsyncClient,
        engine: ScriptedEngine,
        services: Services,
        kept: str,
        store: bool,
    ) -> None:
        size = size_of(services.responses.kept[kept].conversation)
        assert size > 9_000_000
        body = {"model": "tiny", "previous_response_id": kept, "input": "Go on.", "store": store}
        engine.pause_seconds = 60
        asking = []
        tracemalloc.start()
        try:
            for number in range(1, 9):
                asking.append(asyncio.create_task(client.post("/v1/responses", json=body)))
                await until(lambda: services.admission.running + services.admission.waiting == len(asking), 20)
                pixels = number * engine.requests[1].images[0].pixels.nbytes
                least = pixels + (number * size if store else 0)
                assert least <= services.memory.held_bytes < least + 1_000_000
            # The last request may still be on its way to the queue with a copy of its own.
            await until(lambda: tracemalloc.get_traced_memory()[0] < size)
        finally:
            tracemalloc.stop()
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: held(app) == {})

    async def test_one_that_finds_no_room_is_refused(
        self, app: FastAPI, client: httpx.AsyncClient, services: Services, kept: str
    ) -> None:
        services.memory.max_bytes = 10_000_000
        body = {"model": "tiny", "previous_response_id": kept, "input": "Go on."}
        reply = await client.post("/v1/responses", json=body)
        assert (reply.status_code, error_of(reply)["code"]) == (503, "memory_full")
        assert held(app) == {}
