"""``POST /v1/explain``: the same as a chat request is shown, the engine not asked."""

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from llava_api.server.services import Services
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine

EXPLAIN, CHAT = "/v1/explain", "/v1/chat/completions"
RED = data_url(Image.new("RGB", (60, 40), "red"))


def question(text: str, *urls: str) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"model": "tiny", "messages": [{"role": "system", "content": "Be brief."}, message]}


async def test_it_tells_what_the_engine_would_be_given(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    body = question("What is it?", RED, RED)
    explained = (await client.post(EXPLAIN, json=body)).json()
    assert engine.requests == []
    usage = (await client.post(CHAT, json=body)).json()["usage"]
    (asked,) = engine.requests
    assert explained["prompt_token_ids"] == asked.token_ids
    places = [(image.offset, image.length) for image in asked.images]
    assert [(place["offset"], place["length"]) for place in explained["placeholders"]] == places
    assert explained["prompt"] == "Be brief. USER: <image>\n<image>\nWhat is it? ASSISTANT:"
    assert (explained["prompt_tokens"], explained["image_tokens"]) == (usage["prompt_tokens"], 72)
    assert explained["context_left"] == engine.max_model_len - usage["prompt_tokens"]
    assert explained["model"] == "tiny"
    assert [image["param"] for image in explained["images"]] == [
        "messages[1].content[0].image_url",
        "messages[1].content[1].image_url",
    ]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({**question("a"), "model": "another"}, 404, "model"),
        ({"model": "tiny", "messages": []}, 400, "messages"),
        (question("a", "data:image/png;base64,AAAA"), 400, "messages[1].content[0].image_url"),
        ({**question("a"), "tempo": "/9j/4AAQ"}, 400, "tempo"),
    ],
)
async def test_refusals_have_the_apis_shape(
    client: httpx.AsyncClient, body: dict[str, object], status: int, param: str
) -> None:
    reply = await client.post(EXPLAIN, json=body)
    assert reply.status_code == status
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
    assert reply.json()["error"]["param"] == param
    assert reply.headers["x-request-id"]
    assert (await client.post(EXPLAIN, json=question("a", RED))).status_code == 200


async def test_a_request_that_is_too_long_is_explained(client: httpx.AsyncClient) -> None:
    body = question("long " * 600)
    assert (await client.post(CHAT, json=body)).status_code == 400
    explained = (await client.post(EXPLAIN, json=body)).json()
    assert explained["context_left"] == 2048 - explained["prompt_tokens"] < 0


async def test_an_adapter_is_listed_and_chosen_by_its_name(
    client: httpx.AsyncClient, app: FastAPI, engine: ScriptedEngine
) -> None:
    services: Services = app.state.services
    listed = (await client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in listed[-2:]] == [("tiny", None), ("birds", "owner/tiny")]
    assert (await client.get("/v1/models/birds")).json()["parent"] == "owner/tiny"
    reply = await client.post(CHAT, json={**question("a"), "model": "birds"})
    assert reply.json()["model"] == "birds"
    assert engine.requests[-1].adapter == services.model.adapters.served["birds"]
    await client.post(CHAT, json=question("a"))
    assert engine.requests[-1].adapter is None
