"""A caller that leaves the real engine in the middle of a long answer: the engine stops working on it."""

import asyncio
from typing import Any

import pytest

from tests.engine.conftest import Running
from tests.support.running_server import Leaving, post

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until_unfinished(running: Running, number: int, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while running.unfinished_requests() != number:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_leaving_ends_the_engines_work(running: Running, stream: bool, how: Leaving) -> None:
    body: dict[str, Any] = {
        "model": "endless",
        "messages": [{"role": "user", "content": "Tell me everything."}],
        "max_tokens": 1500,
        "ignore_eos": True,
        "stream": stream,
    }
    connection = await running.server.connect()
    try:
        await connection.send(post("/v1/chat/completions", body))
        await until_unfinished(running, 1, 20)
        if stream:
            await asyncio.wait_for(connection.reader.readuntil(b"data: "), 20)
        else:
            await asyncio.sleep(0.3)
        # It would go on for long.
        assert running.unfinished_requests() == 1
    finally:
        await connection.leave(how)
    await until_unfinished(running, 0, 2)
