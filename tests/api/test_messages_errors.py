"""Refusals on the paths of Anthropic's API: in its shape, whichever layer refuses, and with the key in its header."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.test_messages import COUNT, LOOK, MESSAGES, USED, body, image, text
from tests.support.anthropic_shapes import check_error, events_of
from tests.support.scripted_engine import ScriptedEngine

KEY, OTHER = "sk-llava-for-anne-0123456789", "sk-llava-for-ben-0123456789"


def error_of(reply: httpx.Response) -> tuple[int, str, str | None]:
    """Status, Anthropic's type and our code."""
    body = reply.json()
    check_error(body)
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    return reply.status_code, body["error"]["type"], body["error"]["code"]


async def test_no_such_address(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get(f"{MESSAGES}/batches")) == (404, "not_found_error", "not_found")


INVALID = "invalid_request_error"


def result_of(call_id: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": "x"}


@pytest.mark.parametrize(
    ("wanted", "status", "kind", "param", "code"),
    [
        (body(model="gpt-4o"), 404, "not_found_error", "model", "model_not_found"),
        ({"model": "tiny"}, 400, INVALID, "messages", "missing_required_parameter"),
        (body() | {"messages": []}, 400, INVALID, "messages", None),
        (body(max_tokens=-5), 400, INVALID, "max_tokens", None),
        (body([{"type": "video"}]), 400, INVALID, "messages[0].content[0].type", None),
        (
            body([image(type="file", file_id="f")]),
            400,
            INVALID,
            "messages[0].content[0].source.file_id",
            "unsupported_parameter",
        ),
        (
            body([image(type="base64", data="AAAA")]),
            400,
            INVALID,
            "messages[0].content[0].source.data",
            "invalid_image",
        ),
        (
            body([image(type="url", url="http://127.0.0.1/a.png")]),
            400,
            INVALID,
            "messages[0].content[0].source.url",
            "image_url_not_allowed",
        ),
        (
            body("Hi.", [USED], [{**result_of("toolu_1"), "content": [image(type="url", url="data:,")]}]),
            400,
            INVALID,
            "messages[2].content[0].content[0].source.url",
            "invalid_image",
        ),
        (body("word " * 3000), 400, INVALID, "messages", "context_length_exceeded"),
        (body(tools=[{"name": "look"}]), 400, INVALID, "tools[0].input_schema", "missing_required_parameter"),
        (body(tools=[{"type": "web_search_20250305", "name": "web_search"}]), 400, INVALID, "tools[0].type", None),
        (body(tools=[LOOK, LOOK]), 400, INVALID, "tools[1].name", None),
        (
            body(tools=[{**LOOK, "input_schema": {"type": "string"}}]),
            400,
            INVALID,
            "tools[0].input_schema",
            "invalid_schema",
        ),
        (body(tool_choice={"type": "any"}), 400, INVALID, "tool_choice", None),
        (body(tools=[LOOK], tool_choice={"type": "tool", "name": "x"}), 400, INVALID, "tool_choice", None),
        (
            body(tools=[LOOK], tool_choice={"type": "tool"}),
            400,
            INVALID,
            "tool_choice.name",
            "missing_required_parameter",
        ),
        (body(mcp_servers=[{"url": "https://a"}]), 400, INVALID, "mcp_servers", "unsupported_parameter"),
        (body(structured_outputs={"choice": ["a"]}), 400, INVALID, "structured_outputs", "unsupported_parameter"),
        (body(stop_sequences=[""]), 400, INVALID, "stop_sequences[0]", None),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient,
    engine: ScriptedEngine,
    wanted: dict[str, Any],
    status: int,
    kind: str,
    param: str,
    code: str | None,
) -> None:
    for stream in (False, True):
        reply = await client.post(MESSAGES, json={**wanted, "stream": stream})
        assert error_of(reply) == (status, kind, code)
        assert reply.json()["error"]["param"] == param
    assert engine.requests == []


async def test_an_input_that_is_nested_too_deeply(client: httpx.AsyncClient) -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    assert (await client.post(MESSAGES, json=body("Hi.", [{**USED, "input": deep}], "So?"))).status_code in (200, 400)


async def test_count_tokens_refuses_in_the_same_shape(client: httpx.AsyncClient) -> None:
    reply = await client.post(COUNT, json=body([image(type="base64", data="AAAA")]))
    assert error_of(reply) == (400, INVALID, "invalid_image")


async def test_the_outer_layers(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get(MESSAGES)) == (405, INVALID, "method_not_allowed")
    assert error_of(await client.post(MESSAGES, content=b"{")) == (400, INVALID, "invalid_json")
    too_large = await client.post(MESSAGES, json=body("a" * 400_000))
    assert error_of(too_large) == (413, "request_too_large", "request_too_large")


async def test_the_engine_fails(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.fail_at = 1
    assert error_of(await client.post(MESSAGES, json=body())) == (500, "api_error", "engine_failed")
    streamed = await client.post(MESSAGES, json=body(stream=True))
    events = events_of(streamed.content)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "error",
    ]
    assert (events[-1]["error"]["type"], events[-1]["error"]["code"]) == ("api_error", "engine_failed")
    assert events[-1]["request_id"] == streamed.headers["request-id"]


async def test_an_unforeseen_failure(
    client: httpx.AsyncClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "generate", None)
    assert error_of(await client.post(MESSAGES, json=body())) == (500, "api_error", "internal_error")


class TestRateLimits:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"requests_per_minute": 1}

    async def test_one_request_too_many(self, client: httpx.AsyncClient) -> None:
        assert (await client.post(MESSAGES, json=body())).status_code == 200
        refused = await client.post(MESSAGES, json=body([text("Again.")]))
        assert error_of(refused) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1


async def test_the_model_is_loading(client: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.loaded = False
    reply = await client.post(MESSAGES, json={})
    assert error_of(reply) == (503, "overloaded_error", "model_not_ready")
    assert int(reply.headers["retry-after"]) >= 1
    app.state.loaded = True


class TestKeys:
    @pytest.fixture
    def settings_made(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "keys").write_text(f"anne={KEY}\nben={OTHER}\n")
        return {"api_key_file": [str(tmp_path / "keys")]}

    @pytest.mark.parametrize(
        "headers",
        [
            [("x-api-key", KEY)],
            [("x-api-key", f" {KEY} ")],
            [("authorization", f"Bearer {KEY}")],
            [("authorization", f"Bearer {KEY}"), ("x-api-key", "none")],
            [("authorization", "Bearer none"), ("x-api-key", KEY)],
        ],
    )
    async def test_a_key_in_either_header(self, client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
        assert (await client.get(f"{MESSAGES}/batches", headers=headers)).status_code == 404
        assert (await client.get("/v1/models", headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("x-api-key", "wrong")],
            [("x-api-key", "")],
            [("x-api-key", f"Bearer {KEY}")],
            [("x-api-key", KEY), ("x-api-key", OTHER)],
            [("authorization", "Bearer wrong"), ("x-api-key", "wrong")],
        ],
    )
    async def test_no_right_key(self, client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
        reply = await client.post(MESSAGES, json={}, headers=headers)
        assert error_of(reply) == (401, "authentication_error", "invalid_api_key")
        assert ("x-api-key" in reply.json()["error"]["message"]) == (not headers)

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages-of-mine", "/v1/message"])
    async def test_other_paths_take_no_such_header(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.get(path, headers={"x-api-key": KEY})).status_code == 401


async def test_a_prompt_that_is_too_long_is_refused_in_anthropics_words(client: httpx.AsyncClient) -> None:
    error = (await client.post("/v1/messages", json=body("word " * 3000))).json()["error"]
    assert error["message"].startswith("prompt is too long: ")
