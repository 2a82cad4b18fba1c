"""One small JSON answer before the first request."""

import asyncio
import logging

import pytest
from fastapi import FastAPI

from llava_api.errors import StartupError
from llava_api.server import warm_up as module
from llava_api.server.warm_up import warm_up
from tests.support.scripted_engine import ScriptedEngine


async def test_the_engine_has_made_json_before_anybody_asked(app: FastAPI, engine: ScriptedEngine) -> None:
    await warm_up(app.state.services)
    asked = engine.requests[0]
    assert asked.sampling.grammar is not None
    assert asked.sampling.logprobs == 0
    assert (asked.max_tokens, engine.unfinished) == (1, 0)
    assert app.state.services.preparer.grammars.process is not None


async def test_an_engine_that_fails_is_told_and_stops_nothing(
    app: FastAPI, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fail_at = 0
    with caplog.at_level(logging.WARNING):
        await warm_up(app.state.services)
    assert "EngineFailed" in caplog.text


async def test_an_engine_that_does_not_survive_it_ends_the_start(app: FastAPI, engine: ScriptedEngine) -> None:
    engine.dead = True
    with pytest.raises(StartupError, match="ended at its first answer"):
        await warm_up(app.state.services)


async def test_one_that_takes_too_long_is_left(
    app: FastAPI, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.pause_seconds = 60
    monkeypatch.setattr(module, "SECONDS", 0.5)
    async with asyncio.timeout(10):
        await warm_up(app.state.services)
    assert engine.unfinished == 0
