"""How long a request may take, and what its caller sees meanwhile: a status in time, comments, one error at the end."""

import asyncio
import json
import threading
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from llava_api.images.fetch import Resolve
from llava_api.server.services import Services
from tests.api.test_chat import CHAT, RED, image_message, text_body
from tests.api.test_errors import error_of
from tests.support.at_rest import held, settle
from tests.support.openai_schemas import validate_event_stream
from tests.support.running_server import post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks, events
from tests.support.waiting import until
from tests.support.web import Web

RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
KEEP_ALIVE = b": keep-alive\n\n"


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings(image_fetch_timeout_seconds=30, max_running_answers=1)


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


@pytest.fixture
def services(app: FastAPI) -> Services:
    found: Services = app.state.services
    return found


def give(services: Services, **seconds: float) -> None:
    services.settings = services.settings.model_copy(update=seconds)


def body_for(path: str, **more: Any) -> dict[str, Any]:
    if path == CHAT:
        return text_body(**more)
    return {"model": "tiny", "prompt" if path == COMPLETIONS else "input": "Hello.", **more}


PATHS = [CHAT, COMPLETIONS, RESPONSES]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_too_long_before_the_first_token(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine, services: Services, path: str, stream: bool
) -> None:
    engine.pause_seconds = 30
    give(services, request_timeout_seconds=0.2)
    tasks = asyncio.all_tasks()
    reply = await client.post(path, json=body_for(path, stream=stream))
    assert (reply.status_code, error_of(reply)["code"]) == (503, "request_timeout")
    assert "0.2 seconds" in error_of(reply)["message"]
    await settle(app, tasks)


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_takes_too_long_ends_with_one_error(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine, services: Services, path: str
) -> None:
    engine.say(*["word "] * 500)
    engine.pause_seconds = 0.02
    give(services, request_timeout_seconds=0.5)
    tasks = asyncio.all_tasks()
    reply = await client.post(path, json=body_for(path, stream=True))
    assert reply.status_code == 200
    validate_event_stream(path, reply.content)
    if path == RESPONSES:
        assert b"event: response.output_text.delta" in reply.content
        assert reply.content.count(b"event: response.failed") == 1
        assert b"0.5 seconds" in reply.content
    else:
        *before, last = events(reply.content)
        assert before
        assert json.loads(last)["error"]["code"] == "request_timeout"
        assert "[DONE]" not in before
    await settle(app, tasks)


async def test_an_answer_that_takes_too_long_frees_the_engine_though_its_reader_does_not_read(
    app: FastAPI, engine: ScriptedEngine, services: Services
) -> None:
    engine.say(*["word " * 2000] * 5000)
    give(services, request_timeout_seconds=1)
    async with serve_app(app) as server:
        connection = await server.connect()
        # It reads nothing: the sockets' buffers fill, and then the server's.
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.send(post(CHAT, text_body(stream=True)))
        await until(lambda: engine.unfinished)
        await until(lambda: engine.unfinished == 0 and services.admission.running == 0)
        assert engine.deltas < 5000


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_while_an_image_is_fetched(
    app: FastAPI, web: Web, client: httpx.AsyncClient, services: Services, stream: bool
) -> None:
    give(services, request_timeout_seconds=0.2)
    tasks = asyncio.all_tasks()
    message = image_message("What?", web.host.url("/hang"))
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [message], "stream": stream})
    assert (reply.status_code, error_of(reply)["code"]) == (503, "request_timeout")
    await web.settle()
    assert not web.host.open_connections
    await settle(app, tasks | set(web.host.conversations))


async def test_too_long_while_an_image_is_decoded(
    app: FastAPI, client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(services, request_timeout_seconds=0.2)
    go_on = threading.Event()
    monkeypatch.setattr(services.preparer.images, "render_data", lambda image: go_on.wait(20))
    tasks = asyncio.all_tasks()
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("What?", RED)]})
    assert (reply.status_code, error_of(reply)["code"]) == (503, "request_timeout")
    assert held(app) == {}
    go_on.set()
    await settle(app, tasks)


async def test_too_long_in_the_queue_and_while_the_body_comes(app: FastAPI, services: Services) -> None:
    give(services, request_timeout_seconds=0.2)
    slot = await services.admission.enter("somebody else", 1)
    async with serve_app(app) as server:
        whole, slow = await server.connect(), await server.connect()
        await whole.send(post(CHAT, text_body()))
        await slow.send(post(CHAT, text_body())[:-5])
        for connection in (whole, slow):
            assert (await connection.answer()).error["code"] == "request_timeout"
    slot.release()
    await until(lambda: held(app) == {})


@pytest.mark.parametrize("path", PATHS)
async def test_comments_while_nothing_comes(
    app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine, services: Services, path: str
) -> None:
    """Before the first chunk, from the time when the status is sent, and between chunks."""
    engine.pause_seconds = 0.5
    give(services, stream_head_seconds=0.1, stream_keep_alive_seconds=0.1)
    reply = await client.post(path, json=body_for(path, stream=True))
    assert reply.content.startswith(KEEP_ALIVE * 2)
    assert reply.content.count(KEEP_ALIVE) >= 6
    assert KEEP_ALIVE in reply.content[reply.content.index(b"data:") :]
    validate_event_stream(path, reply.content)
    if path == CHAT:
        texts = [choice["delta"].get("content", "") for chunk in chunks(reply.content) for choice in chunk["choices"]]
        assert "".join(texts) == "A red circle."


async def test_no_comments_while_chunks_come(
    client: httpx.AsyncClient, engine: ScriptedEngine, services: Services
) -> None:
    engine.say(*["word "] * 30)
    engine.pause_seconds = 0.02
    give(services, stream_keep_alive_seconds=0.4)
    reply = await client.post(CHAT, json=text_body(stream=True))
    assert reply.content[4:5] == b":"
    assert KEEP_ALIVE not in reply.content


@pytest.mark.parametrize("path", PATHS)
async def test_who_waits_in_the_queue_has_his_status_in_time(app: FastAPI, services: Services, path: str) -> None:
    give(services, stream_head_seconds=0.1, stream_keep_alive_seconds=0.1)
    slot = await services.admission.enter("somebody else", 1)
    async with serve_app(app) as server, httpx.AsyncClient() as client:
        url = server.base_url.removesuffix("/v1") + path
        async with client.stream("POST", url, json=body_for(path, stream=True)) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            parts = reply.aiter_bytes()
            assert await anext(parts) == KEEP_ALIVE
            slot.release()
            rest = b"".join([part async for part in parts])
    validate_event_stream(path, rest)
    assert b"red" in rest


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("why", ["engine", "queue", "unforeseen"])
async def test_a_failure_behind_the_status_is_one_event(
    app: FastAPI,
    client: httpx.AsyncClient,
    engine: ScriptedEngine,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    why: str,
) -> None:
    give(services, stream_head_seconds=0.05, stream_keep_alive_seconds=0.05)
    tasks = asyncio.all_tasks()
    slot = await services.admission.enter("somebody else", 1)
    asking = asyncio.ensure_future(client.post(path, json=body_for(path, stream=True)))
    await until(lambda: services.admission.waiting)
    if why == "queue":
        services.admission.timeout_seconds = 0.3
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        asking = asyncio.ensure_future(client.post(path, json=body_for(path, stream=True)))
    elif why == "engine":
        engine.fail_at = 0
    else:
        monkeypatch.setattr(engine, "generate", lambda request: 1 / 0)
    await asyncio.sleep(0.2)
    if why != "queue":
        slot.release()
    reply = await asking
    slot.release()
    assert reply.status_code == 200
    assert reply.content.startswith(KEEP_ALIVE)
    validate_event_stream(path, reply.content)
    data = [json.loads(item) for item in events(reply.content)] if path != RESPONSES else []
    code = {"engine": "engine_failed", "queue": "queue_timeout", "unforeseen": "internal_error"}[why]
    if path == RESPONSES:
        assert reply.content.count(b"event: response.created") == 1
        assert reply.content.count(b"event: response.failed") == 1
    else:
        assert [item["error"]["code"] for item in data] == [code]
    await settle(app, tasks)


async def test_a_failure_before_the_status_has_one_of_its_own(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.fail_at = 0
    for path in PATHS:
        reply = await client.post(path, json=body_for(path, stream=True))
        assert (reply.status_code, error_of(reply)["code"]) == (500, "engine_failed")


async def test_the_openai_client_reads_past_comments(app: FastAPI, engine: ScriptedEngine, services: Services) -> None:
    engine.pause_seconds = 0.3
    give(services, stream_head_seconds=0.05, stream_keep_alive_seconds=0.05)
    async with (
        serve_app(app) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
    ):
        made = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello."}], stream=True
        )
        texts = [chunk.choices[0].delta.content or "" async for chunk in made]
        assert "".join(texts) == "A red circle."
        async with client.responses.stream(model="tiny", input="Hello.") as stream:
            kinds = [event.type async for event in stream]
            assert (await stream.get_final_response()).output_text == "A red circle."
        assert kinds[0] == "response.created"
        engine.fail_at = 0
        engine.pause_seconds = 0
        slot = await services.admission.enter("somebody else", 1)
        releasing = asyncio.get_running_loop().call_later(0.4, slot.release)
        made = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello."}], stream=True
        )
        with pytest.raises(openai.APIError, match="engine"):
            [chunk async for chunk in made]
        slot = await services.admission.enter("somebody else", 1)
        releasing = asyncio.get_running_loop().call_later(0.4, slot.release)
        async with client.responses.stream(model="tiny", input="Hello.") as stream:
            kinds = [event.type async for event in stream]
        assert kinds == ["response.created", "response.failed"]
        assert releasing.when() > 0
