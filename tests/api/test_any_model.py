"""``--any-model``: requests without a model or for an unknown one; without the flag they are refused with the names."""

import json
from typing import Any

import httpx
import pytest

from tests.api.test_chat import CHAT, text_body
from tests.support.metrics_page import read_page
from tests.support.scripted_engine import ScriptedEngine

MESSAGES = [{"role": "user", "content": "Hello."}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": MESSAGES}),
    ("/v1/completions", {"prompt": "Hello."}),
    ("/v1/responses", {"input": "Hello."}),
    ("/v1/responses/input_tokens", {"input": "Hello."}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ("/v1/explain", {"messages": MESSAGES}),
    ("/api/chat", {"messages": MESSAGES, "stream": False}),
    ("/api/generate", {"prompt": "Hello.", "stream": False}),
    ("/api/show", {}),
]
OTHERS = [{}, {"model": None}, {"model": ""}, {"model": "claude-sonnet-4-5"}]


class TestOn:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"any_model": True, "ollama_api": True}

    @pytest.mark.parametrize("other", OTHERS, ids=str)
    @pytest.mark.parametrize(("path", "body"), ASKED, ids=[path for path, _ in ASKED])
    async def test_the_served_model_answers(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, Any], other: dict[str, Any]
    ) -> None:
        reply = await client.post(path, json=body | other)
        assert reply.status_code == 200
        assert reply.json().get("model", "owner/tiny") == "owner/tiny"
        assert [request.adapter for request in engine.requests] == [None] * len(engine.requests)

    @pytest.mark.parametrize("name", ["birds", "birds:latest"])
    @pytest.mark.parametrize(("path", "body"), ASKED, ids=[path for path, _ in ASKED])
    async def test_an_adapter_is_still_chosen_by_its_name(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, Any], name: str
    ) -> None:
        reply = await client.post(path, json=body | {"model": name})
        chosen = name == "birds" or path.startswith("/api/")
        assert reply.json().get("model") in (None, name if chosen else "owner/tiny")
        for request in engine.requests:
            assert (request.adapter is not None) == chosen

    async def test_streams_and_metrics_name_the_served_model(self, client: httpx.AsyncClient) -> None:
        reply = await client.post(CHAT, json=text_body(stream=True) | {"model": "gpt-4o"})
        first = json.loads(reply.text.split("\n")[0].removeprefix("data: "))
        assert first["model"] == "owner/tiny"
        page = read_page((await client.get("/metrics")).text)
        assert page.value("llava_api_completion_tokens_total", model="owner/tiny", key="-") == 3

    async def test_one_model_by_an_unknown_name(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/models/claude-sonnet-4-5")).json()["id"] == "owner/tiny"


class TestOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"ollama_api": True}

    @pytest.mark.parametrize("other", OTHERS, ids=str)
    @pytest.mark.parametrize(("path", "body"), ASKED, ids=[path for path, _ in ASKED])
    async def test_the_refusal_names_the_served_models(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, Any], other: dict[str, Any]
    ) -> None:
        reply = await client.post(path, json=body | other)
        assert reply.status_code == (404 if other.get("model") else 400)
        assert "owner/tiny, tiny, birds" in reply.text
        if not other.get("model"):
            assert "Missing required parameter: 'model'" in reply.text
        assert engine.requests == []
