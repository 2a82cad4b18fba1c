"""What callers see while a server loads, drains, or has lost its engine: over a real socket, scripted engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from llava_api.chat.model import open_model
from llava_api.engine import supervisor
from llava_api.errors import EngineLost, StartupError
from llava_api.limits.account import open_limiter
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.http_server import make_config
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.lifespan import make_lifespan
from llava_api.server.listening import listen
from llava_api.settings import Settings
from tests.support.metrics_page import Page, read_page
from tests.support.running_server import PromptServer
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import events
from tests.support.tokenizer import write_checkpoint
from tests.support.waiting import until

SOON = 10.0
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@dataclass
class Running:
    lifecycle: Lifecycle
    engine: ScriptedEngine
    client: httpx.AsyncClient
    loaded: asyncio.Event
    abandoned: asyncio.Event
    serving: "asyncio.Task[None]"
    starts: list[Exception | ScriptedEngine]
    app: FastAPI

    async def state(self) -> tuple[int, int, int]:
        """Status of live, ready and of the list of models."""
        replies = [await self.client.get(path) for path in ("/health/live", "/health/ready", "/v1/models")]
        return replies[0].status_code, replies[1].status_code, replies[2].status_code

    async def until(self, holds: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(SOON):
            while not await holds():
                await asyncio.sleep(0.01)

    async def metrics(self) -> Page:
        return read_page((await self.client.get("/metrics")).text)


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {}


@pytest_asyncio.fixture
async def running(
    tmp_path: Path, settings_made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr("llava_api.server.lifecycle.LAST_ANSWERS_SECONDS", 0.6)
    settings = Settings(**settings_made)
    keys = KeyRing(settings)
    model = open_model(str(write_checkpoint(tmp_path / "model", None)), ("tiny",), settings)
    engine = ScriptedEngine()
    starts: list[Exception | ScriptedEngine] = [engine]
    loaded, abandoned = asyncio.Event(), asyncio.Event()

    async def start() -> ScriptedEngine:
        await loaded.wait()
        made = starts.pop(0)
        if isinstance(made, Exception):
            raise made
        return made

    def close_port() -> None:
        server.should_exit = True

    limiter = open_limiter(settings)
    lifecycle = Lifecycle(settings.drain_timeout_seconds, abandon_load=abandoned.set, on_end=close_port)
    lifespan = make_lifespan(model, settings, keys, limiter, lifecycle, start)
    app = create_app(settings, keys, lifespan=lifespan, lifecycle=lifecycle)
    server = PromptServer(make_config(app, settings))
    listener = listen(Settings(port=0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    port = listener.getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SOON) as client:
        yield Running(lifecycle, engine, client, loaded, abandoned, serving, starts, app)
    lifecycle.stop()
    lifecycle.stop()
    loaded.set()
    await asyncio.wait_for(serving, SOON)


async def ready(running: Running) -> None:
    running.loaded.set()

    async def is_ready() -> bool:
        return (await running.client.get("/health/ready")).status_code == 200

    await running.until(is_ready)


async def test_a_loading_server_is_live_and_says_that_it_loads(running: Running) -> None:
    assert await running.state() == (200, 503, 503)
    reply = await running.client.post("/v1/chat/completions", json=BODY)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_not_ready")
    assert int(reply.headers["retry-after"]) > 0
    assert reply.headers["x-request-id"]
    page = await running.metrics()
    assert page.value("llava_api_state", state="loading") == 1
    # Alerts are by model, and a model that does not load has one too.
    assert page.labels("llava_api_model_info", "model") == {"tiny"}
    await ready(running)
    page = await running.metrics()
    assert (page.value("llava_api_state", state="loading"), page.value("llava_api_state", state="ready")) == (0, 1)
    assert await running.state() == (200, 200, 200)


async def test_a_stop_while_loading_ends_the_load(running: Running) -> None:
    running.lifecycle.stop()
    await asyncio.wait_for(running.abandoned.wait(), SOON)
    await asyncio.wait_for(running.serving, SOON)
    assert running.lifecycle.failure is None


async def test_a_load_that_fails_ends_the_server_with_its_reason(running: Running) -> None:
    running.starts[0] = StartupError("no such checkpoint")
    running.loaded.set()
    await asyncio.wait_for(running.serving, SOON)
    assert str(running.lifecycle.failure) == "no such checkpoint"


async def test_a_load_that_fails_in_an_unforeseen_way_is_no_end_in_good_order(running: Running) -> None:
    running.starts[0] = AssertionError("a mistake of vLLM's")
    running.loaded.set()
    await asyncio.wait_for(running.serving, SOON)
    assert "AssertionError: a mistake of vLLM's" in str(running.lifecycle.failure)


async def test_an_engine_that_nobody_can_watch_any_more_ends_the_server(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(running)

    def broken() -> bool:
        raise PermissionError("not allowed")

    monkeypatch.setattr(running.engine, "paused", broken)
    await asyncio.wait_for(running.serving, SOON)
    assert "PermissionError" in str(running.lifecycle.failure)


async def test_an_idle_server_ends_at_once(running: Running) -> None:
    await ready(running)
    running.lifecycle.stop()
    await asyncio.wait_for(running.serving, SOON)
    assert running.lifecycle.failure is None


async def test_open_streams_run_to_their_end_while_nothing_new_comes_in(running: Running) -> None:
    await ready(running)
    running.engine.say(*["word "] * 30)
    running.engine.pause_seconds = 0.02
    async with running.client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        running.lifecycle.stop()
        await asyncio.sleep(0)
        assert await running.state() == (200, 503, 503)
        refused = await running.client.post("/v1/chat/completions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) > 0
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert sum('"content":"word' in line for line in rest) >= 28
    await asyncio.wait_for(running.serving, SOON)
    assert running.lifecycle.failure is None


async def cut_streams(running: Running) -> None:
    """Every open stream gets one error event, a unary request a 503."""
    running.engine.say(*["word "] * 10_000)
    running.engine.pause_seconds = 0.02
    unary = asyncio.create_task(running.client.post("/v1/chat/completions", json={**BODY, "stream": False}))
    async with running.client.stream("POST", "/v1/chat/completions", json=BODY) as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        running.lifecycle.stop()
        running.lifecycle.stop()
        rest = [line async for line in lines if line]
    assert "[DONE]" not in rest[-1]
    (error,) = [line for line in rest if '"error"' in line]
    assert error is rest[-1]
    assert '"server_stopping"' in error
    assert "shutting down" in error
    reply = await unary
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_stopping")


async def test_a_second_signal_ends_everything_at_once(running: Running) -> None:
    await ready(running)
    metrics = running.app.state.metrics
    await cut_streams(running)
    await asyncio.wait_for(running.serving, SOON)
    assert running.lifecycle.failure is None
    # No failure of the server's or the engine's: nobody is to be woken for it.
    page = read_page(metrics.page("")[0].decode())
    assert page.total("llava_api_request_outcomes_total", outcome="cut") == 2
    assert page.total("llava_api_request_outcomes_total", outcome="failed") == 0


@pytest.mark.parametrize("settings_made", [{"drain_timeout_seconds": 0.2}])
async def test_the_drain_has_an_end(running: Running) -> None:
    await ready(running)
    running.engine.say(*["word "] * 10_000)
    running.engine.pause_seconds = 0.02
    reply = asyncio.create_task(running.client.post("/v1/chat/completions", json=BODY))
    while not running.engine.unfinished:
        await asyncio.sleep(0.01)
    running.lifecycle.stop()
    said = events((await asyncio.wait_for(reply, SOON)).content)
    assert '"server_stopping"' in said[-1]
    await asyncio.wait_for(running.serving, SOON)


async def test_a_lost_engine_ends_the_server_which_is_no_longer_live(running: Running) -> None:
    await ready(running)
    running.engine.dead = True

    async def is_dead() -> bool:
        return await running.state() == (503, 503, 503)

    await running.until(is_dead)
    refused = await running.client.get("/v1/models")
    assert refused.json()["error"]["code"] == "engine_stopped"
    await asyncio.wait_for(running.serving, SOON)
    assert "engine was lost" in str(running.lifecycle.failure)
    assert isinstance(running.lifecycle.failure, EngineLost)


@pytest.mark.parametrize("settings_made", [{"restart_engine": True}])
async def test_a_server_whose_engine_is_started_again_stays_live(running: Running) -> None:
    await ready(running)
    assert (await running.metrics()).total("llava_api_engine_lost_timestamp_seconds") == 0
    running.loaded.clear()
    running.starts.append(ScriptedEngine())
    running.engine.dead = True

    async def is_restarting() -> bool:
        return (await running.metrics()).value("llava_api_state", state="restarting") == 1

    await running.until(is_restarting)
    assert (await running.client.get("/health/live")).status_code == 200
    page = await running.metrics()
    assert time.time() - page.value("llava_api_engine_lost_timestamp_seconds", reason="ended") < SOON  # type: ignore[operator]
    assert page.total("llava_api_engine_lost_timestamp_seconds", reason="stalled") == 0
    await ready(running)
    reply = await running.client.post("/v1/chat/completions", json={**BODY, "stream": False})
    assert reply.json()["choices"][0]["message"]["content"] == "A red circle."
