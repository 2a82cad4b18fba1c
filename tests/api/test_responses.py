"""``/v1/responses`` over a scripted engine: every answer is held against OpenAI's schemas by the client fixture."""

import json
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from PIL import Image

from llava_api.chat.grammar import call_prefix
from llava_api.engine.base import TokenLogprob
from tests.api.test_chat import prompt_of
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine

URL = "/v1/responses"
FORM = {"type": "json_schema", "name": "it", "strict": True}
RED = data_url(Image.new("RGB", (60, 40), "red"))
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
TOOL = {"type": "function", "name": "count", "description": "Counts.", "parameters": SCHEMA, "strict": True}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"response_store_bytes": 100_000}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "What is it?", **fields}


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = reply.text.split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def test_a_whole_response(client: httpx.AsyncClient) -> None:
    data = (await client.post(URL, json=body(instructions="Be brief.", metadata={"a": "b"}))).json()
    assert (data["status"], data["error"], data["incomplete_details"]) == ("completed", None, None)
    assert data["output"][0]["content"][0]["text"] == "A red circle."
    assert (data["instructions"], data["metadata"], data["store"]) == ("Be brief.", {"a": "b"}, True)
    assert data["usage"]["output_tokens"] == 3
    assert data["usage"]["total_tokens"] == data["usage"]["input_tokens"] + 3


async def test_the_prompt_is_that_of_the_same_chat(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    url = {"type": "image_url", "image_url": {"url": RED}}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "First?"}, url]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Second?"},
    ]
    image = {"type": "input_image", "image_url": RED, "detail": "auto"}
    said = {"type": "output_text", "text": "Red.", "annotations": [], "logprobs": []}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "First?"}, image]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [said]},
        {"role": "user", "content": "Second?"},
    ]
    await client.post("/v1/chat/completions", json={"model": "tiny", "messages": chat})
    reply = await client.post(URL, json=body(instructions="Be brief.", input=items))
    assert reply.status_code == 200
    first, second = engine.requests
    assert first.token_ids == second.token_ids
    assert first.images[0].cache_key == second.images[0].cache_key


async def test_a_stream_of_text(client: httpx.AsyncClient) -> None:
    events = events_of(await client.post(URL, json=body(stream=True)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "A red circle." == events[-4]["text"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


async def test_calls_are_items_of_their_own(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    call = call_prefix("count") + '{"n": 3}}'
    engine.texts = (" ", call[:13], call[13:40], call[40:] + "\n" + call)
    request = body(tools=[TOOL], tool_choice="required", stream=True)
    events = events_of(await client.post(URL, json=request))
    made = events[-1]["response"]["output"]
    assert [(item["type"], item["name"], item["arguments"]) for item in made] == [
        ("function_call", "count", '{"n": 3}')
    ] * 2
    assert len({item["call_id"] for item in made}) == 2
    for index, item in enumerate(made):
        own = [event for event in events if event.get("output_index") == index]
        deltas = [event["delta"] for event in own if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(deltas) == item["arguments"]
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1]["item"] == item
    whole = (await client.post(URL, json=request | {"stream": False})).json()
    assert [item["arguments"] for item in whole["output"]] == ['{"n": 3}'] * 2


async def test_a_calls_result_is_told(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Count."},
        {"type": "function_call", "call_id": "call_1", "name": "count", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "three"},
    ]
    assert (await client.post(URL, json=body(input=items))).status_code == 200
    assert "count returned: three" in prompt_of(engine)
    items[1] |= {"arguments": {"to": 3}}
    items[2] |= {"call_id": "call_2", "output": None}
    assert (await client.post(URL, json=body(input=items))).status_code == 200
    assert '{"name": "count", "arguments": {"to": 3}}</s> USER: count returned: ASSISTANT:' in prompt_of(engine)


async def test_an_answer_cut_short_is_incomplete(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.finish_reason = "length"
    for stream in (False, True):
        reply = await client.post(URL, json=body(max_output_tokens=3, stream=stream))
        data = events_of(reply)[-1]["response"] if stream else reply.json()
        assert (data["status"], data["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert data["output"][0]["status"] == "incomplete"


async def test_an_answer_that_is_cut_before_it_is_a_call_is_no_message(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.say('{"name": "co')
    engine.finish_reason = "length"
    for choice in ("auto", "required"):
        events = events_of(await client.post(URL, json=body(tools=[TOOL], tool_choice=choice, stream=True)))
        data = events[-1]["response"]
        assert (data["status"], data["output"]) == ("incomplete", [])
        assert not any(event["type"].startswith("response.output") for event in events)


async def test_an_empty_answer_is_a_message(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.texts = ("",)
    data = events_of(await client.post(URL, json=body(stream=True)))[-1]["response"]
    assert data["output"][0]["content"][0]["text"] == ""


async def test_a_schema_is_kept_to(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    form = {"type": "json_schema", "name": "it", "schema": SCHEMA, "strict": True}
    data = (await client.post(URL, json=body(text={"format": form}))).json()
    assert data["text"] == {"format": form | {"description": None}}
    assert '"maximum": 9' in str(engine.requests[0].sampling.grammar)
    bad = form | {"schema": {"type": "object", "minProperties": 10**9}}
    error = (await client.post(URL, json=body(text={"format": bad}))).json()["error"]
    assert (error["param"], error["code"]) == ("text.format.schema", "invalid_schema")


async def test_logprobs_where_asked_for(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.logprobs = [(TokenLogprob(40, -0.5, ((40, -0.5),)),)] * 3
    data = (await client.post(URL, json=body(include=["message.output_text.logprobs"], top_logprobs=1))).json()
    assert [token["logprob"] for token in data["output"][0]["content"][0]["logprobs"]][:1] == [-0.5]
    assert (await client.post(URL, json=body())).json()["output"][0]["content"][0]["logprobs"] == []


async def test_a_failure_before_and_in_a_stream(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.fail_at = 0
    assert (await client.post(URL, json=body(stream=True))).status_code == 500
    engine.fail_at = 2
    last = events_of(await client.post(URL, json=body(stream=True)))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    engine.fail_at = None
    assert (await client.post(URL, json=body())).status_code == 200
    assert engine.unfinished == 0


async def test_a_response_is_gone_on_from(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    image = {"role": "user", "content": [{"type": "input_image", "image_url": RED}]}
    first = (await client.post(URL, json=body(input=[image]))).json()
    kept = (await client.get(f"{URL}/{first['id']}")).json()
    assert kept == first
    second = (await client.post(URL, json=body(previous_response_id=first["id"], input="And now?"))).json()
    assert second["previous_response_id"] == first["id"]
    assert len(engine.requests[1].images) == 1
    assert len(engine.requests[1].token_ids) > len(engine.requests[0].token_ids)
    await client.post(URL, json=body(previous_response_id=second["id"], input="And then?"))
    said = [
        image,
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": "And then?"},
    ]
    await client.post(URL, json=body(input=said))
    assert engine.requests[2].token_ids == engine.requests[3].token_ids
    assert (await client.delete(f"{URL}/{first['id']}")).json()["deleted"] is True
    reply = await client.post(URL, json=body(previous_response_id=first["id"]))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "previous_response_id")
    assert (await client.get(f"{URL}/{first['id']}")).status_code == 404
    assert (await client.delete(f"{URL}/{first['id']}")).status_code == 404


async def test_the_oldest_make_room(client: httpx.AsyncClient) -> None:
    ids = [(await client.post(URL, json=body(input="word " * 300))).json()["id"] for _ in range(40)]
    assert (await client.get(f"{URL}/{ids[0]}")).status_code == 404
    assert (await client.get(f"{URL}/{ids[-1]}")).status_code == 200
    unkept = (await client.post(URL, json=body(store=False))).json()
    assert unkept["store"] is False
    assert (await client.get(f"{URL}/{unkept['id']}")).status_code == 404


class TestWithoutAStore:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {}

    async def test_what_needs_one_is_refused(self, client: httpx.AsyncClient) -> None:
        reply = await client.post(URL, json=body(previous_response_id="resp_1"))
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "unsupported_parameter")
        assert error["param"] == "previous_response_id"
        assert "--response-store-bytes" in error["message"]

    async def test_nothing_is_kept(self, client: httpx.AsyncClient) -> None:
        data = (await client.post(URL, json=body(store=True))).json()
        assert data["store"] is False
        assert (await client.get(f"{URL}/{data['id']}")).status_code == 404


REFUSED = [
    ({"background": True}, "background"),
    ({"truncation": "newest"}, "truncation"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "function", "name": "none of them"}, "tools": [TOOL]}, "tool_choice"),
    ({"include": [1]}, "include[0]"),
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": [{"type": "mcp_call", "id": "mcp_1"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]},
        "input[0].content[0].image_url",
    ),
    ({"max_output_tokens": -3}, "max_output_tokens"),
    ({"input": "word " * 3000}, "input"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[param for _, param in REFUSED])
async def test_refusals_name_the_field(
    client: httpx.AsyncClient, engine: ScriptedEngine, fields: dict[str, Any], param: str
) -> None:
    reply = await client.post(URL, json=body(**fields))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert engine.requests == []
    assert (await client.post(URL, json=body())).status_code == 200


async def test_what_the_client_dumps_can_be_sent_back(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """As openai's ``model_dump()`` writes items and tools, with nulls for all that it knows."""
    engine.texts = (call_prefix("count") + '{"n": 3}}',)
    made = openai.types.responses.Response.model_validate(
        (await client.post(URL, json=body(tools=[TOOL], tool_choice="required"))).json()
    )
    output = {"type": "function_call_output", "call_id": made.output[0].call_id, "output": "3"}  # type: ignore[union-attr]
    for aliases in (False, True):
        items = [item.model_dump(by_alias=aliases) for item in made.output]
        tools = [tool.model_dump(by_alias=aliases) for tool in made.tools]
        request = body(input=[{"role": "user", "content": "Count."}, *items, output], tools=tools)
        reply = await client.post(URL, json=request)
        assert reply.status_code == 200, reply.text


async def test_a_function_may_return_an_image(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    shown = [{"type": "input_text", "text": "a screenshot"}, {"type": "input_image", "image_url": RED}]
    items = [
        {"role": "user", "content": "Look."},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": shown},
    ]
    assert (await client.post(URL, json=body(input=items))).status_code == 200
    assert len(engine.requests[0].images) == 1
    bad = {**items[2], "output": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
    error = (await client.post(URL, json=body(input=[*items[:2], bad]))).json()["error"]
    assert error["param"] == "input[2].output[0].image_url"


async def test_a_kept_response_is_not_streamed_again(client: httpx.AsyncClient) -> None:
    made = (await client.post(URL, json=body())).json()
    reply = await client.get(f"{URL}/{made['id']}?stream=true&starting_after=3")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "stream")
    for query in ("stream=false", "stream=False", "include=message.output_text.logprobs", "include_obfuscation=false"):
        assert (await client.get(f"{URL}/{made['id']}?{query}")).json() == made
    assert (await client.post(f"{URL}/{made['id']}")).headers["allow"] == "DELETE, GET, HEAD"


async def test_what_is_kept_is_bounded_by_its_bytes(client: httpx.AsyncClient, app: FastAPI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": "x" * 20_000}}, "required": ["a"]}
    deep: Any = "a"
    for _ in range(500):
        deep = [deep]
    said = {"type": "output_text", "text": "a", "annotations": [deep], "parsed": {"a": ["b"] * 1000}}
    items = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [said]},
        {"role": "user", "content": "y"},
    ]
    for _ in range(12):
        reply = await client.post(URL, json=body(input=items, text={"format": {**FORM, "schema": schema}}))
        assert reply.status_code == 200
    store = app.state.services.responses
    assert 0 < store.size <= 100_000
    assert store.size == sum(map(len, store.kept.values()))
    assert len(store.items) == sum(len(kept.conversation) for kept in store.kept.values())
    assert all(b'"annotations":[]' in kept.given[1].json for kept in store.kept.values())
    assert (await client.post(URL, json=body(user="u" * 513))).status_code == 400
