"""A caller that leaves, on a real socket and at every stage: what was his is free again within two seconds."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI

from llava_api.concurrency.admission import Admission
from llava_api.images.fetch import Resolve
from llava_api.images.load import ImageLoader
from llava_api.server.services import Services
from tests.api.test_chat import BLUE, CHAT, RED, image_message, text_body
from tests.api.test_structured_output import form
from tests.support.at_rest import held, in_threads, settle
from tests.support.running_server import Leaving, post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until
from tests.support.web import Web

GRAMMAR_SECONDS = 0.5
Reached = Callable[[], Any]


@dataclass
class World:
    app: FastAPI
    engine: ScriptedEngine
    web: Web
    monkeypatch: pytest.MonkeyPatch
    go_on: threading.Event
    """Threads that a stage holds up wait for it."""

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def images(self) -> ImageLoader:
        return self.services.preparer.images

    @property
    def admission(self) -> Admission:
        return self.services.admission

    def hold_up(self, name: str) -> threading.Event:
        """A method of the image loader waits in its thread; the event tells that it does."""
        there = threading.Event()
        method = getattr(self.images, name)

        def slowly(*arguments: Any) -> Any:
            there.set()
            assert self.go_on.wait(20)
            return method(*arguments)

        self.monkeypatch.setattr(self.images, name, slowly)
        return there


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings(image_fetch_timeout_seconds=30, image_threads=1, max_running_answers=2)


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


@pytest.fixture
def world(app: FastAPI, engine: ScriptedEngine, web: Web, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(app, engine, web, monkeypatch, threading.Event())


def shows(*urls: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [image_message("What is it?", *urls)]}


def with_form() -> dict[str, Any]:
    return text_body(response_format=form({"type": "object", "properties": {"a": {"type": "integer"}}}))


@asynccontextmanager
async def body_comes(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    yield shows(RED), lambda: world.services.memory.held_bytes


@asynccontextmanager
async def queued(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    slot = await world.admission.enter("somebody else", 2)
    yield text_body(), lambda: world.admission.waiting
    slot.release()


@asynccontextmanager
async def fetching(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    urls = [world.web.host.url(f"/hang?{number}") for number in range(3)]
    yield shows(*urls), lambda: len(world.web.host.requests) == 3
    await until(lambda: not world.web.host.open_connections, 2)


@asynccontextmanager
async def fetching_the_body(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    yield shows(world.web.host.url("/hang/in-body")), lambda: world.web.host.bytes_sent > 50
    await until(lambda: not world.web.host.open_connections, 2)


@asynccontextmanager
async def measuring(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    yield shows(RED), world.hold_up("measure_data").is_set


@asynccontextmanager
async def waiting_for_a_thread(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    work = asyncio.ensure_future(world.images.decoding.run("somebody else", lambda: world.go_on.wait(20)))  # type: ignore[arg-type, return-value]
    there = world.hold_up("render_data")
    yield shows(RED, BLUE), lambda: world.images.decoding.admission.waiting == 2
    world.go_on.set()
    await work
    assert not there.is_set()


@asynccontextmanager
async def decoding(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    there = world.hold_up("render_data")
    yield shows(RED, BLUE), there.is_set
    there.clear()
    world.go_on.set()
    await until(lambda: not in_threads(world.app))
    # The second had not begun.
    assert not there.is_set()


@asynccontextmanager
async def trying_the_grammar(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    asked = []

    async def ask(grammar: str) -> str:
        asked.append(grammar)
        await asyncio.sleep(GRAMMAR_SECONDS)
        return ""

    world.monkeypatch.setattr(world.services.preparer.grammars, "ask", ask)
    yield with_form(), lambda: asked


@asynccontextmanager
async def prefill(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    world.engine.pause_seconds = 30
    yield shows(RED), lambda: world.engine.unfinished == 1


@asynccontextmanager
async def answering(world: World) -> AsyncIterator[tuple[dict[str, Any], Reached]]:
    world.engine.texts = ("word ",) * 10_000
    world.engine.pause_seconds = 0.01
    yield text_body(), lambda: world.engine.deltas > 5


STAGES = [
    body_comes,
    queued,
    fetching,
    fetching_the_body,
    measuring,
    waiting_for_a_thread,
    decoding,
    trying_the_grammar,
    prefill,
    answering,
]


@pytest.mark.parametrize("how", ["FIN", "RST", "half"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: str(stage.__name__))
async def test_what_was_held_is_free_again(
    world: World, stage: Any, stream: bool, how: Leaving, caplog: pytest.LogCaptureFixture
) -> None:
    asked_before = [prefill, answering]
    async with serve_app(world.app) as server:
        tasks = asyncio.all_tasks()
        async with stage(world) as (body, reached):
            connection = await server.connect()
            others = held(world.app)
            request = post(CHAT, {**body, "stream": stream})
            await connection.send(request[:-10] if stage is body_comes else request)
            await until(reached)
            await connection.leave(how)
            try:
                await until(lambda: held(world.app) == others, seconds=2)
            finally:
                world.go_on.set()
        await settle(world.app, tasks)
        assert len(world.engine.requests) == (stage in asked_before)
        # It still answers, and nobody who left is the server's fault.
        world.engine.say("Fine.")
        world.engine.pause_seconds = 0
        assert b"Fine." in (await server.ask(post(CHAT, text_body()))).body
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_connection_that_has_answered_before(world: World, how: Leaving) -> None:
    async with serve_app(world.app) as server:
        tasks = asyncio.all_tasks()
        connection = await server.connect()
        for _ in range(2):
            assert b"A red circle." in (await connection.ask(post(CHAT, text_body()))).body
        world.engine.pause_seconds = 30
        await connection.send(post(CHAT, text_body()))
        await until(lambda: world.engine.unfinished)
        await connection.leave(how)
        await settle(world.app, tasks)


@pytest.mark.parametrize("stream", [True, False])
async def test_one_who_leaves_does_not_take_the_image_from_those_who_stay(world: World, stream: bool) -> None:
    there = world.hold_up("render_data")
    async with serve_app(world.app) as server:
        leaving, staying = await server.connect(), await server.connect()
        await leaving.send(post(CHAT, {**shows(RED), "stream": stream}))
        await until(there.is_set)
        await staying.send(post(CHAT, shows(RED)))
        await until(lambda: [flight.waiting for flight in world.images.decoding.work.flights.values()] == [2])
        await leaving.leave("RST")
        await until(lambda: [flight.waiting for flight in world.images.decoding.work.flights.values()] == [1])
        world.go_on.set()
        assert b"A red circle." in (await staying.answer()).body
        assert len(world.engine.requests) == 1
