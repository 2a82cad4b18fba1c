"""The queue in front of the engine, as callers meet it: turns by key, a word when it is full, nothing left behind."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_api.concurrency.admission import Admission
from tests.api.test_chat import CHAT, text_body
from tests.support.endpoints import EXAMPLE_BODIES, GENERATING
from tests.support.scripted_engine import ScriptedEngine

ANNE, BEN = ({"authorization": f"Bearer sk-llava-for-{name}-0123456789"} for name in ("anne", "ben"))


@pytest.fixture
def settings_made() -> dict[str, Any]:
    keys = [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]
    return {"api_key": keys, "max_running_answers": 1, "max_waiting_requests": 20}


@pytest.fixture
def admission(app: FastAPI) -> Admission:
    found: Admission = app.state.services.admission
    return found


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_request_is_not_behind_anothers_crowd(
    client: httpx.AsyncClient, engine: ScriptedEngine, admission: Admission
) -> None:
    engine.pause_seconds = 0.01
    served: list[str] = []

    async def ask(name: str, headers: dict[str, str]) -> None:
        assert (await client.post(CHAT, json=text_body(), headers=headers)).status_code == 200
        served.append(name)

    crowd = [asyncio.create_task(ask("anne", ANNE)) for _ in range(15)]
    await until(lambda: admission.waiting == 14)
    await ask("ben", BEN)
    # The one that was being answered, and one turn of hers.
    assert len(served) <= 3
    await asyncio.gather(*crowd)
    assert (admission.running, admission.waiting, engine.unfinished) == (0, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_503_that_says_when_to_come_again(
    client: httpx.AsyncClient, engine: ScriptedEngine, admission: Admission, stream: bool
) -> None:
    engine.pause_seconds = 0.05
    admission.most_waiting = 1
    taken = [asyncio.create_task(client.post(CHAT, json=text_body(), headers=ANNE)) for _ in range(2)]
    await until(lambda: admission.waiting == 1)
    for path in GENERATING:
        reply = await client.post(path, json={**EXAMPLE_BODIES[path], "stream": stream}, headers=BEN)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_full")
        assert int(reply.headers["retry-after"]) > 0
    assert [(await task).status_code for task in taken] == [200, 200]
    assert (await client.post(CHAT, json=text_body(), headers=BEN)).status_code == 200
    assert (admission.running, admission.waiting) == (0, 0)


async def test_who_waits_too_long_is_told(
    client: httpx.AsyncClient, engine: ScriptedEngine, admission: Admission
) -> None:
    engine.pause_seconds = 0.1
    taken = asyncio.create_task(client.post(CHAT, json=text_body(), headers=ANNE))
    await until(lambda: admission.running == 1)
    admission.timeout_seconds = 0.05
    reply = await client.post(CHAT, json=text_body(), headers=BEN)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_timeout")
    assert (await taken).status_code == 200
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_failure_gives_its_slot_back(
    client: httpx.AsyncClient, engine: ScriptedEngine, admission: Admission
) -> None:
    for fail_at in (0, 1):
        engine.fail_at = fail_at
        for stream in (False, True):
            await client.post(CHAT, json=text_body(stream=stream), headers=ANNE)
    engine.fail_at = None
    assert admission.running == 0
    assert (await client.post(CHAT, json=text_body(), headers=BEN)).status_code == 200


async def test_many_prompts_of_one_request_wait_their_turns(
    client: httpx.AsyncClient, engine: ScriptedEngine, admission: Admission
) -> None:
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "n": 2, "temperature": 1}
    reply = await client.post("/v1/completions", json=body, headers=ANNE)
    assert [choice["index"] for choice in reply.json()["choices"]] == list(range(6))
    assert len(engine.requests) == 3
    assert admission.running == 0
