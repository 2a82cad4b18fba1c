"""Mistakes of our own: in the API's shape, with an id to ask about, and without a word of what went wrong."""

import httpx
import pytest
from fastapi import FastAPI

from llava_api.engine.base import GenerationRequest
from llava_api.server.services import Services
from tests.api.test_chat import CHAT, text_body
from tests.api.test_errors import error_of
from tests.support.scripted_engine import ScriptedEngine


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unforeseen_error_is_a_500_with_an_id(
    app: FastAPI,
    client: httpx.AsyncClient,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    def broken(request: GenerationRequest) -> None:
        raise RuntimeError("/secret/path")

    services: Services = app.state.services
    with monkeypatch.context() as patched:
        patched.setattr(services.engine, "generate", broken)
        replies = [
            await client.post(CHAT, json=text_body(stream=stream), headers={"x-request-id": "mine"}) for _ in range(2)
        ]
    for reply in replies:
        assert reply.status_code == 500
        error = error_of(reply)
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "secret" not in reply.text
    ids = [reply.headers.get_list("x-request-id") for reply in replies]
    assert [len(found) for found in ids] == [1, 1]
    assert len({"mine", ids[0][0], ids[1][0]}) == 3
    assert (await client.post(CHAT, json=text_body(stream=stream))).status_code == 200


async def test_every_answer_of_the_chat_route_has_one_id(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    replies = [
        await client.post(CHAT, json=text_body()),
        await client.post(CHAT, json=text_body(stream=True)),
        await client.post(CHAT, content=b"{"),
        await client.post(CHAT, content=b" " * 400_000),
        await client.get(CHAT),
    ]
    engine.fail_at = 0
    replies.append(await client.post(CHAT, json=text_body()))
    assert [reply.status_code for reply in replies] == [200, 200, 400, 413, 405, 500]
    ids = [reply.headers.get_list("x-request-id") for reply in replies]
    assert [len(found) for found in ids] == [1] * len(replies)
    assert len({found[0] for found in ids}) == len(replies)


async def test_a_whole_answer_whose_engine_fails_midway_is_a_500(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.fail_at = 2
    reply = await client.post(CHAT, json=text_body())
    assert (reply.status_code, error_of(reply)["code"]) == (500, "engine_failed")
    assert "A red" not in reply.text
    assert engine.unfinished == 0
