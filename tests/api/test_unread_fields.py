"""Fields that nothing reads: what the header, the log and the metric say of them, and images that would be dropped."""

import json
import logging
import time
from typing import Any

import httpx
import pytest

from llava_api.errors import InvalidRequest
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.server.body import parse
from llava_api.telemetry.log_lines import FIELDS
from tests.api.test_chat import CHAT, text_body
from tests.support.endpoints import EXAMPLE_BODIES
from tests.support.metrics_page import read_page
from tests.support.scripted_engine import ScriptedEngine

HEADER = "x-llava-ignored"
METRIC = "llava_api_ignored_fields_total"
PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"cors_allow_origins": ["https://chat.example.com"]}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello.", **fields}]}


@pytest.mark.parametrize("stream", [False, True])
async def test_header_log_line_and_metric_name_each_field_once(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    body = {**message(id=1), "keep_alive": "5m", "zzz": False, "stream": stream}
    body["messages"] *= 3
    with caplog.at_level(logging.INFO, "llava_api.access"):
        reply = await client.post(CHAT, json=body, headers={"origin": "https://chat.example.com"})
    assert (reply.status_code, reply.headers[HEADER]) == (200, "messages.id, keep_alive, zzz")
    assert HEADER in reply.headers["access-control-expose-headers"]
    [line] = [getattr(record, FIELDS) for record in caplog.records if record.name == "llava_api.access"]
    assert line["ignored"] == reply.headers[HEADER]
    page = read_page((await client.get("/metrics")).text)
    assert page.labels(METRIC, "field") == {"keep_alive", "id", "other"}
    assert page.total(METRIC) == 3


async def test_without_unread_fields_there_is_no_header(client: httpx.AsyncClient) -> None:
    assert HEADER not in (await client.post(CHAT, json=text_body(seed=None, unknown=None))).headers


async def test_the_header_is_bounded_and_clean(client: httpx.AsyncClient) -> None:
    names = ["a\r\nset-cookie: b=c", "é,\u2028", "x" * 100_000, *(f"field{number}" for number in range(2_000))]
    reply = await client.post(CHAT, json=text_body(**dict.fromkeys(names, 1)))
    assert reply.status_code == 200
    header = reply.headers[HEADER]
    assert header.startswith("a??set-cookie??b?c, ???, xxx")
    assert header.endswith("field12, ...")
    assert len(header) < 300
    assert read_page((await client.get("/metrics")).text).labels(METRIC, "field") == {"other"}


IMAGES: list[tuple[str, dict[str, Any]]] = [
    # path of the field, body
    ("images", text_body(images=["aGVsbG8="])),
    ("image", text_body(image="cat.png")),
    ("imageUrl", text_body(imageUrl={"url": "https://example.com/cat"})),
    ("image_data", text_body(image_data=[{"data": "aGVsbG8=", "id": 1}])),
    ("messages[0].images", message(images=[PNG])),
    ("messages[0].image_url", message(image_url="https://example.com/cat.png")),
    ("messages[0].attachments", message(attachments=[{"contentType": "image/png", "url": "blob:1"}])),
    ("messages[0].parts", message(parts=[{"type": "text", "text": "a"}, {"type": "image", "image": PNG}])),
    ("messages[0].experimental", message(experimental={"deep": [{"in": ["here", PNG]}]})),
    ("messages[0].raw", message(raw="/9j/4AAQSkZJRg==")),
    ("messages[0].content[0].image", message(content=[{"type": "text", "text": "a", "image": PNG}])),
]


@pytest.mark.parametrize(("param", "body"), IMAGES, ids=[param for param, _ in IMAGES])
async def test_an_unread_field_with_an_image_is_refused(
    client: httpx.AsyncClient, engine: ScriptedEngine, param: str, body: dict[str, Any]
) -> None:
    reply = await client.post(CHAT, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, "unknown_parameter")
    assert param in error["message"]
    assert "content" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"images": []},
        {"images": None},
        {"image": ""},
        {"parts": [{"type": "text", "text": "hi"}]},
        {"image_detail": "low"},
        {"max_image_size": 512},
        {"vl_high_resolution_images": True},
        {"accepted": ["image/png"]},
        {"modalities": ["text", "image"]},
    ],
    ids=repr,
)
async def test_an_unread_field_without_an_image_is_ignored(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    assert (await client.post(CHAT, json=message(**fields))).status_code == 200


@pytest.mark.parametrize("address", EXAMPLE_BODIES)
async def test_every_endpoint_ignores_and_names(client: httpx.AsyncClient, address: str) -> None:
    reply = await client.post(address, json=EXAMPLE_BODIES[address] | {"keep_alive": 1})
    assert (reply.status_code, reply.headers[HEADER]) == (200, "keep_alive")


async def test_items_parts_and_tools_of_responses_are_looked_into(client: httpx.AsyncClient) -> None:
    item = {"role": "user", "content": [{"type": "input_text", "text": "Hello.", "cache": 1}], "mood": "good"}
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "defer_loading": False}
    body = {"model": "tiny", "input": [item], "tools": [tool], "text": {"format": {"type": "text", "x": 1}}}
    reply = await client.post("/v1/responses", json=body)
    assert reply.status_code == 200
    assert set(reply.headers[HEADER].split(", ")) == {
        "input.content.cache",
        "input.mood",
        "tools.defer_loading",
        "text.format.x",
    }


def test_a_flood_costs_little() -> None:
    """Two thousand fields in about a millisecond; here ten times that, for slow machines."""
    flood = json.dumps(text_body(**{f"a{number}": f"text {number}" for number in range(2_000)})).encode()
    started = time.perf_counter()
    for _ in range(10):
        parse(flood, ChatCompletionRequest)
    assert (time.perf_counter() - started) / 10 < 0.05


def test_a_flood_of_texts_is_refused() -> None:
    flood = json.dumps(text_body(zzz=["text"] * 20_000)).encode()
    with pytest.raises(InvalidRequest, match="too many fields"):
        parse(flood, ChatCompletionRequest)


def test_a_list_of_numbers_is_no_flood() -> None:
    embedding = json.dumps(text_body(embedding=[0.5] * 20_000)).encode()
    assert parse(embedding, ChatCompletionRequest).model == "tiny"
