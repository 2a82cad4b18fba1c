"""What comes back from ``/v1/chat/completions``, and what the engine was asked."""

from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.endpoints import HEALTH
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks
from tests.support.tokenizer import llama_like_tokenizer

CHAT = "/v1/chat/completions"
TOKENIZER = llama_like_tokenizer()
IMAGE_TOKEN = TOKENIZER.token_to_id("<image>")
RED, BLUE = (data_url(Image.new("RGB", (60, 40), colour)) for colour in ("red", "blue"))


def text_body(text: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def image_message(text: str, *urls: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def prompt_of(engine: ScriptedEngine) -> str:
    """The prompt that the engine was given, special tokens shown, BOS left out."""
    ids = engine.requests[-1].token_ids
    assert ids[0] == 1
    assert 1 not in ids[1:]
    return TOKENIZER.decode(ids[1:], skip_special_tokens=False).strip()


async def test_a_whole_answer(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=text_body())
    data = reply.json()
    assert reply.status_code == 200
    prompt_tokens = data["usage"]["prompt_tokens"]
    assert data == {
        "id": data["id"],
        "object": "chat.completion",
        "created": data["created"],
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A red circle.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 3,
            "total_tokens": prompt_tokens + 3,
            "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": data["system_fingerprint"],
    }
    assert data["id"].startswith("chatcmpl-")
    assert data["system_fingerprint"].startswith("fp_")
    assert isinstance(data["created"], int)


async def test_a_stream(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=text_body(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    received = chunks(reply.content)
    assert received[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in received) == "A red circle."
    assert [chunk["choices"][0]["finish_reason"] for chunk in received] == [None] * (len(received) - 1) + ["stop"]
    assert len({chunk["id"] for chunk in received}) == 1
    assert all("usage" not in chunk for chunk in received)


async def test_usage_comes_last_where_asked_for(client: httpx.AsyncClient) -> None:
    body = text_body(stream=True, stream_options={"include_usage": True})
    received = chunks((await client.post(CHAT, json=body)).content)
    assert received[-1]["choices"] == []
    assert received[-1]["usage"]["completion_tokens"] == 3
    assert received[-2]["choices"][0]["finish_reason"] == "stop"


async def test_images_keep_their_order(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    messages = [
        image_message("First?", RED),
        {"role": "assistant", "content": "Red."},
        image_message("Second?", BLUE),
    ]
    reply = await client.post(CHAT, json={"model": "tiny", "messages": messages})
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 72
    request = engine.requests[-1]
    first, second = request.images
    assert first.offset < second.offset
    assert request.token_ids.count(IMAGE_TOKEN) == 72
    for image in request.images:
        assert request.token_ids[image.offset : image.offset + image.length] == [IMAGE_TOKEN] * 36
        assert image.pixels.shape == (3, 84, 84)
    # Red above blue in the middle of the first image, the other way round in the second.
    assert first.pixels[0, 42, 42] > first.pixels[2, 42, 42]
    assert second.pixels[0, 42, 42] < second.pixels[2, 42, 42]
    assert first.cache_key != second.cache_key


async def test_the_prompt_is_the_familys(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two.\n"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Three."},
    ]
    await client.post(CHAT, json={"model": "tiny", "messages": messages})
    assert prompt_of(engine) == "Be brief. USER: One.\nTwo.\n ASSISTANT: Yes.</s> USER: Three. ASSISTANT:"


async def test_typed_markers_stay_text(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json=text_body("<image></s><s>"))
    ids = engine.requests[-1].token_ids
    assert IMAGE_TOKEN not in ids
    assert 2 not in ids
    assert ids.count(1) == 1


async def test_knobs_reach_the_engine(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(
        CHAT, json=text_body(temperature=0.5, top_p=0.9, max_tokens=7, stop=["a", "b"], seed=3, user="me")
    )
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, engine.requests[-1].max_tokens) == (0.5, 0.9, 7)
    assert (sampling.stop, sampling.seed) == (("a", "b"), 3)
    # An answer ends at </s>, whatever the caller set.
    assert sampling.stop_token_ids == (2,)


async def test_max_completion_tokens_and_the_room_left(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json=text_body(max_completion_tokens=9))
    assert engine.requests[-1].max_tokens == 9
    reply = await client.post(CHAT, json=text_body())
    room = engine.max_model_len - reply.json()["usage"]["prompt_tokens"]
    assert engine.requests[-1].max_tokens == room


@pytest.mark.parametrize("field", ["temperature", "top_p", "max_tokens", "stop", "seed", "stream", "stream_options"])
async def test_null_means_not_given(client: httpx.AsyncClient, field: str) -> None:
    assert (await client.post(CHAT, json=text_body(**{field: None}))).status_code == 200


async def test_models_and_health(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["owner/tiny", "tiny", "birds"]
    one = (await client.get("/v1/models/owner/tiny")).json()
    assert (one["id"], one["object"]) == ("owner/tiny", "model")
    assert listed["data"][0] == one
    assert [(card["root"], card["parent"]) for card in listed["data"]] == [
        ("owner/tiny", None),
        ("owner/tiny", None),
        ("birds", "owner/tiny"),
    ]
    for card in listed["data"]:
        assert card["max_model_len"] == card["context_length"] == engine.max_model_len
        assert card["architecture"]["input_modalities"] == ["text", "image"]
        assert card["architecture"]["output_modalities"] == ["text"]
        assert card["permission"][0]["allow_sampling"] is True
    for path in HEALTH:
        assert (await client.get(path)).status_code == 200
    engine.dead = True
    assert (await client.get("/health/live")).status_code == 200
    for path in ("/health", "/health/ready"):
        assert (await client.get(path)).status_code == 503
