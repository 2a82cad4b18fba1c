"""``/tokenize`` and ``/detokenize``: the ids that the engine would be given, and their text."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.test_chat import CHAT, IMAGE_TOKEN, RED, TOKENIZER, image_message, text_body
from tests.support.scripted_engine import ScriptedEngine

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks at a place.", "parameters": {}}}


async def test_a_text(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = await client.post(TOKENIZE, json={"model": "tiny", "prompt": "Hi </s>"})
    await client.post("/v1/completions", json={"model": "tiny", "prompt": "Hi </s>"})
    ids = engine.requests[0].token_ids
    assert reply.json() == {"count": len(ids), "max_model_len": engine.max_model_len, "tokens": ids}
    assert ids.count(2) == 0, "typed text is no special token"


@pytest.mark.parametrize(
    ("body", "bos"),
    [
        ({"prompt": "Hi"}, [1]),
        ({"prompt": "Hi", "add_special_tokens": True}, [1]),
        ({"prompt": "Hi", "add_special_tokens": False}, []),
        ({"content": "Hi"}, []),
        ({"content": "Hi", "add_special": True}, [1]),
    ],
)
async def test_bos(client: httpx.AsyncClient, body: dict[str, Any], bos: list[int]) -> None:
    reply = await client.post(TOKENIZE, json=body)
    assert reply.json()["tokens"] == bos + TOKENIZER.encode("Hi", add_special_tokens=False).ids


async def test_an_empty_text(client: httpx.AsyncClient) -> None:
    assert (await client.post(TOKENIZE, json={"prompt": ""})).json()["tokens"] == [1]
    assert (await client.post(TOKENIZE, json={"prompt": "", "add_special_tokens": False})).json()["count"] == 0


async def test_the_tokens_as_they_are_written(client: httpx.AsyncClient) -> None:
    reply = await client.post(TOKENIZE, json={"prompt": "Hi USE", "return_token_strs": True})
    assert reply.json()["token_strs"] == ["<s>", "▁", "H", "i", "▁USE"]
    messages = [image_message("Hi", RED)]
    shown = (await client.post(TOKENIZE, json={"messages": messages, "return_token_strs": True})).json()
    assert shown["token_strs"].count("<image>") == 36
    assert len(shown["token_strs"]) == shown["count"]


@pytest.mark.parametrize(
    "more",
    [{}, {"tools": [LOOK]}, {"tools": [LOOK], "tool_choice": "none"}, {"temperature": 0, "max_tokens": 4}],
    ids=str,
)
async def test_messages_are_counted_as_chat_counts_them(
    client: httpx.AsyncClient, engine: ScriptedEngine, more: dict[str, Any]
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, image_message("What is it?", RED, RED)]
    counted = (await client.post(TOKENIZE, json={"model": "tiny", "messages": messages, **more})).json()
    assert engine.requests == []
    usage = (await client.post(CHAT, json={"model": "tiny", "messages": messages, **more})).json()["usage"]
    assert counted["tokens"] == engine.requests[0].token_ids
    assert counted["count"] == usage["prompt_tokens"]
    assert counted["tokens"].count(IMAGE_TOKEN) == 72


async def test_an_answer_that_is_begun(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    body = {**text_body(), "continue_final_message": True, "add_generation_prompt": False}
    body["messages"] = [*body["messages"], {"role": "assistant", "content": "It is"}]
    counted = (await client.post(TOKENIZE, json=body)).json()
    await client.post(CHAT, json=body)
    assert counted["tokens"] == engine.requests[0].token_ids


async def test_more_than_fits_is_counted(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    text = "ab" * engine.max_model_len
    for body in ({"prompt": text}, {"messages": text_body(text)["messages"]}):
        assert (await client.post(TOKENIZE, json=body)).json()["count"] > engine.max_model_len


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (TOKENIZE, {"model": "mistral", "prompt": "a"}, 404, "model"),
        (TOKENIZE, {}, 400, "prompt"),
        (TOKENIZE, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        (TOKENIZE, {"prompt": ["a"]}, 400, "prompt"),
        (TOKENIZE, {"messages": []}, 400, "messages"),
        (TOKENIZE, {"prompt": "a" * 200_000}, 400, "prompt"),
        (TOKENIZE, {"content": "a" * 200_000}, 400, "content"),
        (TOKENIZE, {"messages": [image_message("a", "http://127.0.0.1/a.png")]}, 400, None),
        (TOKENIZE, {"messages": [image_message("a", *[RED] * 65)]}, 400, "messages"),
        (TOKENIZE, {"prompt": "a", "mm_processor_kwargs": {"size": 9}}, 400, "mm_processor_kwargs"),
        (TOKENIZE, {"prompt": "a", "image": RED}, 400, "image"),
        (DETOKENIZE, {"model": "mistral", "tokens": [1]}, 404, "model"),
        (DETOKENIZE, {}, 400, "tokens"),
        (DETOKENIZE, {"tokens": [100_000]}, 400, "tokens"),
        (DETOKENIZE, {"tokens": [-1]}, 400, "tokens[0]"),
        (DETOKENIZE, {"tokens": [1] * 200_001}, 413, None),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient, app: FastAPI, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    reply = await client.post(path, json=body)
    assert reply.status_code == status
    assert param in (None, reply.json()["error"]["param"])
    assert app.state.services.memory.held_bytes == 0


@pytest.mark.parametrize("text", ["Hi", "größer \U0001f388", " two  spaces ", ""])
async def test_there_and_back(client: httpx.AsyncClient, text: str) -> None:
    tokens = (await client.post(TOKENIZE, json={"prompt": text, "add_special_tokens": False})).json()["tokens"]
    assert (await client.post(DETOKENIZE, json={"tokens": tokens})).json() == {"prompt": text}


async def test_special_tokens_are_their_names(client: httpx.AsyncClient) -> None:
    ids = TOKENIZER.encode("Hi", add_special_tokens=False).ids
    reply = await client.post(DETOKENIZE, json={"model": "birds", "tokens": [1, *ids, IMAGE_TOKEN, 2]})
    assert reply.json() == {"prompt": "<s> Hi<image></s>"}


class TestLimits:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"api_key": ["anne=sk-llava-for-anne-0123456789"], "requests_per_minute": 3, "images_per_minute": 1}

    async def test_keys_and_limits_are_those_of_chat(self, client: httpx.AsyncClient) -> None:
        key = {"authorization": "Bearer sk-llava-for-anne-0123456789"}
        for path in (TOKENIZE, DETOKENIZE):
            assert (await client.post(path, json={"prompt": "a", "tokens": [1]})).status_code == 401
        image = {"messages": [image_message("a", RED)]}
        assert (await client.post(TOKENIZE, json=image, headers=key)).status_code == 200
        assert (await client.post(TOKENIZE, json=image, headers=key)).status_code == 429
        assert (await client.post(DETOKENIZE, json={"tokens": [1]}, headers=key)).status_code == 200
        assert (await client.post(DETOKENIZE, json={"tokens": [1]}, headers=key)).status_code == 429
