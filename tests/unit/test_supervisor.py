"""The engine's supervisor, over scripted engines that die, pause and hang."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llava_api.engine import supervisor
from llava_api.engine.base import Adapter, GenerationRequest, Sampling
from llava_api.engine.supervisor import SupervisedEngine
from llava_api.errors import EngineStopped, StartupError
from llava_api.settings import Settings
from tests.support.scripted_engine import ScriptedEngine

SOON = 10.0
BIRDS = Adapter("birds", "folder", 1, 8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.01)


class Garage:
    """Engines that are there to be started, one after the other; a None fails to start."""

    def __init__(self, *engines: ScriptedEngine | None) -> None:
        self.engines = list(engines)
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> ScriptedEngine:
        await self.gate.wait()
        engine = self.engines.pop(0)
        if engine is None:
            raise StartupError("no memory")
        return engine


@asynccontextmanager
async def supervised(garage: Garage, **settings: Any) -> AsyncIterator[tuple[SupervisedEngine, "asyncio.Task[str]"]]:
    engine = SupervisedEngine(await garage.start(), garage.start, Settings(**settings))
    task = asyncio.create_task(engine.supervise())
    try:
        yield engine, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def endless(pause_seconds: float = 0.005) -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.say(*["x"] * 10_000)
    engine.pause_seconds = pause_seconds
    return engine


def request(name: str = "r") -> GenerationRequest:
    return GenerationRequest(name, [1, 2], (), Sampling(0.0), 16)


async def texts(engine: SupervisedEngine, heard: list[str], name: str = "r") -> None:
    async for delta in engine.generate(request(name)):
        heard.append(delta.text)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not holds():
            await asyncio.sleep(0.005)


def kill(engine: ScriptedEngine) -> None:
    engine.dead = True


def pause(engine: ScriptedEngine) -> None:
    engine.stopped = True


@pytest.mark.parametrize("fault", [kill, pause])
async def test_a_lost_engine_ends_its_streams_and_the_supervision(fault: Callable[[ScriptedEngine], None]) -> None:
    first = endless()
    async with supervised(Garage(first)) as (engine, task):
        heard: list[str] = []
        streaming = asyncio.create_task(texts(engine, heard))
        await until(lambda: heard)
        fault(first)
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(streaming, SOON)
        assert "process" in await asyncio.wait_for(task, SOON)
        with pytest.raises(EngineStopped):
            await texts(engine, heard)
        with pytest.raises(EngineStopped):
            await engine.check_health()


async def test_work_without_a_token_for_too_long_is_a_hang() -> None:
    first = endless(pause_seconds=0.5)
    async with supervised(Garage(first), engine_stall_seconds=0.05) as (engine, task):
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(texts(engine, []), SOON)
        assert "--engine-stall-seconds" in await asyncio.wait_for(task, SOON)
        assert first.dead


async def test_how_long_an_engine_with_work_has_been_silent() -> None:
    async with supervised(Garage(endless(pause_seconds=0.2))) as (engine, _):
        assert engine.silence_seconds == 0
        heard: list[str] = []
        streaming = asyncio.create_task(texts(engine, heard))
        await until(lambda: engine.silence_seconds > 0.1)
        await until(lambda: heard)
        assert engine.silence_seconds < 0.2
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        assert engine.silence_seconds == 0


async def test_an_adapter_that_is_being_loaded_when_the_engine_is_lost_ends_with_it() -> None:
    first, second = ScriptedEngine(), ScriptedEngine()
    # vLLM leaves such calls without an answer.
    first.adapter_gate.clear()
    garage = Garage(first, second)
    async with supervised(garage, restart_engine=True) as (engine, _):
        garage.gate.clear()
        loading = asyncio.create_task(engine.load_adapter(BIRDS))
        await asyncio.sleep(0)
        kill(first)
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(loading, SOON)
        waiting = asyncio.create_task(engine.load_adapter(BIRDS))
        garage.gate.set()
        await asyncio.wait_for(waiting, SOON)
        assert second.adapters == [BIRDS]
        await engine.remove_adapter(BIRDS)
        assert second.adapters == []


async def test_an_idle_engine_does_not_hang_and_a_slow_one_that_moves_does_not() -> None:
    first = ScriptedEngine()
    first.pause_seconds = 0.06
    async with supervised(Garage(first), engine_stall_seconds=0.15) as (engine, task):
        await asyncio.sleep(0.4)
        heard: list[str] = []
        await texts(engine, heard)
        assert heard == [" A red", " circle", "."]
        assert not task.done()


async def test_a_reader_that_does_not_read_is_no_hang() -> None:
    first = endless()
    async with supervised(Garage(first), engine_stall_seconds=0.1) as (engine, task):
        stream = engine.generate(request())
        await anext(stream)
        await asyncio.sleep(0.4)
        assert not task.done()
        assert (await anext(stream)).text == "x"
        await stream.aclose()


async def test_a_start_that_fails_in_an_unforeseen_way_is_tried_again() -> None:
    first, second = ScriptedEngine(), ScriptedEngine()
    outcomes: list[Exception | ScriptedEngine] = [AssertionError("a mistake of vLLM's"), second]

    async def start() -> ScriptedEngine:
        made = outcomes.pop(0)
        if isinstance(made, Exception):
            raise made
        return made

    async with supervised(Garage(first), restart_engine=True) as (engine, task):
        engine.start = start
        first.dead = True
        await until(lambda: engine.engine is second)
        assert not task.done()


async def test_a_request_without_a_token_is_run_again_and_one_with_tokens_is_not() -> None:
    first, second = endless(), ScriptedEngine()
    garage = Garage(first, second)
    async with supervised(garage, restart_engine=True) as (engine, task):
        garage.gate.clear()
        begun: list[str] = []
        streaming = asyncio.create_task(texts(engine, begun, "begun"))
        await until(lambda: begun)
        first.pause_seconds = 0.2
        silent: list[str] = []
        waiting = asyncio.create_task(texts(engine, silent, "silent"))
        await until(lambda: len(first.requests) == 2)
        first.dead = True
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(streaming, SOON)
        with pytest.raises(EngineStopped) as told:
            await engine.check_health()
        assert told.value.code == "engine_restarting"
        assert not waiting.done()
        garage.gate.set()
        await asyncio.wait_for(waiting, SOON)
        assert silent == [" A red", " circle", "."]
        assert [made.request_id for made in second.requests] == ["silent"]
        await engine.check_health()
        assert not task.done()


async def test_a_request_that_breaks_each_engine_is_run_twice_only() -> None:
    engines = [ScriptedEngine() for _ in range(4)]
    async with supervised(Garage(*engines), restart_engine=True, max_engine_restarts=3) as (engine, _):
        for made in engines:
            made.pause_seconds = 0.05

        async def break_each() -> None:
            for made in engines:
                await until(lambda made=made: made.requests)  # type: ignore[misc]
                made.dead = True

        breaking = asyncio.create_task(break_each())
        with pytest.raises(EngineStopped):
            await asyncio.wait_for(texts(engine, []), SOON)
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
        assert [len(made.requests) for made in engines] == [1, 1, 0, 0]


async def test_starts_that_fail_are_tried_again_up_to_the_limit() -> None:
    first, third = ScriptedEngine(), ScriptedEngine()
    async with supervised(Garage(first, None, third, None, None), restart_engine=True, max_engine_restarts=3) as (
        engine,
        task,
    ):
        counted: list[None] = []
        engine.count_restart = lambda: counted.append(None)
        first.dead = True
        await until(lambda: engine.engine is third)
        heard: list[str] = []
        await texts(engine, heard)
        assert heard
        third.dead = True
        await asyncio.wait_for(task, SOON)
        assert len(counted) == 3


@pytest.mark.parametrize("restart_engine", [False, True])
async def test_a_server_that_closes_ends_what_runs_with_its_own_words(restart_engine: bool) -> None:
    first = endless()
    engine = SupervisedEngine(first, Garage().start, Settings(restart_engine=restart_engine))
    heard: list[str] = []
    streaming = asyncio.create_task(texts(engine, heard))
    await until(lambda: heard)
    # One that has no token yet waits for no other engine: there will be none.
    first.pause_seconds = 0.2
    silent = asyncio.create_task(texts(engine, [], "silent"))
    await until(lambda: len(first.requests) == 2)
    engine.abandon()
    for running in (streaming, silent, texts(engine, heard)):
        with pytest.raises(EngineStopped, match="shutting down") as told:
            await asyncio.wait_for(running, SOON)
        assert told.value.code == "server_stopping"
