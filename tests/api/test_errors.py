"""Every refusal has the API's form and names the field to correct; the next request works."""

import json
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from tests.api.test_chat import CHAT, image_message, text_body
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import events

PARAM = "messages[0].content[0].image_url"
CONTENT = "messages[0].content"
PICTURE = "data:image/png;base64,"


def error_of(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(error[key] is None or isinstance(error[key], str) for key in error)
    assert error["message"]
    assert reply.headers["content-type"] == "application/json"
    return error


LINE = data_url(Image.new("1", (60_000, 1)))

REFUSED: list[tuple[str, dict[str, Any], int, str | None, str | None]] = [
    ("other model", text_body() | {"model": "gpt-4o"}, 404, "model", "model_not_found"),
    ("no model", {"messages": [{"role": "user", "content": "a"}]}, 400, "model", "missing_required_parameter"),
    ("no messages", {"model": "tiny", "messages": []}, 400, "messages", None),
    ("wrong type", text_body(temperature="hot"), 400, "temperature", None),
    ("out of range", text_body(temperature=-9), 400, "temperature", None),
    ("17 answers", text_body(n=17), 400, "n", None),
    ("no answers", text_body(n=0), 400, "n", None),
    ("stop is an object", text_body(stop={}), 400, "stop", None),
    ("content is an object", {"model": "tiny", "messages": [{"role": "user", "content": {}}]}, 400, CONTENT, None),
    ("unknown role", {"model": "tiny", "messages": [{"role": "robot", "content": "a"}]}, 400, "messages[0].role", None),
    (
        "unknown part",
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "video"}]}]},
        400,
        "messages[0].content[0].type",
        None,
    ),
    (
        "no url",
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages[0].content[0].image_url.url",
        "missing_required_parameter",
    ),
    ("too long", text_body("word " * 3000), 400, "messages", "context_length_exceeded"),
    ("bad base64", {"model": "tiny", "messages": [image_message("a", PICTURE + "%")]}, 400, PARAM, "invalid_image"),
    (
        "no picture",
        {"model": "tiny", "messages": [image_message("a", PICTURE + "AAAA")]},
        400,
        PARAM,
        "invalid_image",
    ),
    (
        "web picture",
        {"model": "tiny", "messages": [image_message("a", "http://127.0.0.1/a.png")]},
        400,
        PARAM,
        "image_url_not_allowed",
    ),
    ("a long line", {"model": "tiny", "messages": [image_message("a", LINE)]}, 400, PARAM, "image_too_large"),
    (
        "bomb",
        {"model": "tiny", "messages": [image_message("a", data_url(Image.new("1", (4000, 4000))))]},
        400,
        PARAM,
        "image_too_large",
    ),
]


@pytest.mark.parametrize(("body", "status", "param", "code"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED])
async def test_refusals(
    client: httpx.AsyncClient, engine: ScriptedEngine, body: Any, status: int, param: str, code: str
) -> None:
    reply = await client.post(CHAT, json=body)
    error = error_of(reply)
    assert (reply.status_code, error["type"]) == (status, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert engine.requests == []
    assert (await client.post(CHAT, json=text_body())).status_code == 200


async def test_the_context_error_counts_text_and_images(client: httpx.AsyncClient) -> None:
    message = image_message("word " * 3000, data_url(Image.new("RGB", (50, 50))))
    error = error_of(await client.post(CHAT, json={"model": "tiny", "messages": [message]}))
    expected = r"This model's maximum context length is 2048 tokens\. However, your messages resulted in (\d+) tokens "
    found = re.match(expected + r"\((\d+) of text and 36 of images\)\.", error["message"])
    assert found is not None
    assert int(found[1]) == int(found[2]) + 36 > 3000
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe"])
async def test_bodies_that_are_not_json_objects(client: httpx.AsyncClient, body: bytes) -> None:
    reply = await client.post(CHAT, content=body)
    assert reply.status_code == 400
    assert error_of(reply)["code"] == "invalid_json"


async def test_a_body_over_the_limit(client: httpx.AsyncClient) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 10_000

    for reply in (await client.post(CHAT, content=b" " * 400_000), await client.post(CHAT, content=endless())):
        assert reply.status_code == 413
        assert error_of(reply)["code"] == "request_too_large"


async def test_addresses_and_methods(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/embeddings", "/doc/", "/health/read/"):
        reply = await client.get(path)
        assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")
        assert error_of(reply)["message"].endswith("chat is at POST /v1/chat/completions.")
    assert "--ollama-api" in (await client.get("/api/tags")).json()["error"]
    assert "POST /v1/messages." in (await client.get("/v1/messages/batches")).json()["error"]["message"]
    reply = await client.get(CHAT)
    assert (reply.status_code, error_of(reply)["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    reply = await client.get("/v1/models/other")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")


async def test_the_server_makes_each_request_id(client: httpx.AsyncClient) -> None:
    seen = set()
    for path in ("/health/live", "/nowhere", "/v1/models"):
        reply = await client.get(path, headers={"x-request-id": "mine"})
        assert reply.headers["x-request-id"] != "mine"
        seen.add(reply.headers["x-request-id"])
    assert len(seen) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_fails_at_once_is_a_500(
    client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    engine.fail_at = 0
    reply = await client.post(CHAT, json=text_body(stream=stream))
    assert (reply.status_code, error_of(reply)["code"]) == (500, "engine_failed")
    engine.fail_at = None
    assert (await client.post(CHAT, json=text_body())).status_code == 200


async def test_an_engine_that_fails_later_ends_the_stream_with_one_error(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.fail_at = 2
    data = events((await client.post(CHAT, json=text_body(stream=True))).content)
    assert "[DONE]" not in data
    assert [set(json.loads(item)) for item in data].count({"error"}) == 1
    assert json.loads(data[-1])["error"]["code"] == "engine_failed"
    assert engine.unfinished == 0


@pytest.mark.parametrize("address", ["/v1/chat/completions", "/v1/explain"])
async def test_a_text_that_cannot_fit_is_refused_by_its_length(
    client: httpx.AsyncClient, app: FastAPI, address: str
) -> None:
    app.state.services.settings.max_body_bytes = 10_000_000
    body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 1_000_000}]}
    reply = await client.post(address, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert "5000000 characters" in reply.json()["error"]["message"]
    body["messages"] = [{"role": "user", "content": "word"}]
    assert (await client.post(address, json=body)).status_code == 200


LOOK = {"type": "function", "function": {"name": "look"}}
WORDS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": [{"rol": "user", "content": "x"}]}, "messages[0].role", "Missing required parameter"),
    ({"response_format": {"schema": {}}}, "response_format.type", "Missing required parameter"),
    ({"model": None}, "model", "Missing required parameter"),
    ({"stop": ["a"] * 65}, "stop", "up to 64"),
    ({"logit_bias": {"circle": 1}}, "logit_bias", "'circle' is none"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias", "99999999 is no token id"),
    ({"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "see"}}}, "tool_choice", "'see'"),
    ({"stop": {}}, "stop", "a string or a list"),
    ({"messages": "hello"}, "messages", "a list"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content", "a string or a list"),
    ({"modalities": ["audio"]}, "modalities[0]", "'text'"),
    ({"seed": 2**70}, "seed", "an integer of up to 64 bits"),
    ({"max_tokens": "many"}, "max_tokens", "an integer of up to 64 bits"),
    ({"temperature": "warm"}, "temperature", "a number"),
    ({"stream": "often"}, "stream", "true or false"),
    ({"messages": []}, "messages", "it must have 1 or more entries."),
    ({"stop": ["a"] * 65}, "stop", "it may have up to 64 entries."),
    ({"top_p": 2}, "top_p", "it must be 1 or less."),
    ({"n": 0}, "n", "it must be 1 or more."),
    ({"top_k": 2**31}, "top_k", "it must be below 2147483648."),
    ({"repetition_penalty": 0}, "repetition_penalty", "it must be 0.01 or more."),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "it must match the pattern ^[a-zA-Z0-9_.:/-]{1,128}$.",
    ),
]


@pytest.mark.parametrize(("fields", "param", "words"), WORDS, ids=[f"{param} {words}" for _, param, words in WORDS])
async def test_a_refusal_names_the_right_values(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, words: str
) -> None:
    error = error_of(await client.post(CHAT, json={**text_body(), **fields}))
    assert error["param"] == param
    assert words in error["message"]
    assert "pydantic" not in error["message"]
    assert "validation" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "n"}}}, "tool_choice"),
        (
            {"text": {"format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}},
            "text.format.schema",
        ),
        ({"input": [], "messages": [{"role": "user"}]}, "messages"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_chat_fields_in_the_responses_api_are_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    reply = await client.post("/v1/responses", json={"model": "tiny", "input": "x", **fields})
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (400, param)
    assert "continue_final_message" not in error["message"]
