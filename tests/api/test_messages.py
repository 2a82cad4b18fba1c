"""What comes back from ``/v1/messages`` and ``count_tokens``, and what the engine was asked."""

import asyncio
import base64
import io
import json
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from tests.api.test_chat import CHAT, RED, prompt_of
from tests.support.anthropic_shapes import events_of
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
LOOK = {
    "name": "look",
    "description": "Looks at a place.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
}
CALL = '{"name": "look", "arguments": {"at": "the door"}}'
USED = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "the door"}}


def png(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source or {"type": "base64", "media_type": "image/png", "data": png("red")}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def body(*messages: Any, **more: Any) -> dict[str, Any]:
    """Messages by turns, the first a user's."""
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": content}
        for place, content in enumerate(messages or ("Hello.",))
    ]
    return {"model": "tiny", "max_tokens": 20, "messages": turns, **more}


async def test_a_whole_answer(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = await client.post(MESSAGES, json=body(), headers={"anthropic-version": "2023-06-01"})
    data = reply.json()
    assert reply.status_code == 200
    prompt_tokens = len(engine.requests[0].token_ids)
    assert data == {
        "id": data["id"],
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "A red circle.", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt_tokens - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }
    assert data["id"].removeprefix("msg_") == reply.headers["request-id"].removeprefix("req_")
    assert engine.requests[0].max_tokens == 20
    assert prompt_of(engine).endswith("USER: Hello. ASSISTANT:")


async def test_a_stream(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = await client.post(MESSAGES, json=body(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.content)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == len(engine.requests[0].token_ids) - 3
    assert "".join(event["delta"]["text"] for event in events[2:5]) == "A red circle."
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_answer_is_an_empty_text(
    client: httpx.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    engine.say("")
    reply = await client.post(MESSAGES, json=body(stream=stream))
    if stream:
        assert [event["type"] for event in events_of(reply.content)][1:3] == [
            "content_block_start",
            "content_block_stop",
        ]
    else:
        assert reply.json()["content"] == [{"type": "text", "text": "", "citations": None}]


@pytest.mark.parametrize(
    ("system", "messages", "prompt"),
    [
        ("Be brief.", ["Hi."], "Be brief. USER: Hi. ASSISTANT:"),
        ([text("Be brief."), text("Be kind.")], ["Hi."], "Be brief.\nBe kind. USER: Hi. ASSISTANT:"),
        (None, [[text("One."), text("Two.")]], "USER: One.\nTwo. ASSISTANT:"),
        (None, ["Hi.", "Hello.", "Who?"], "USER: Hi. ASSISTANT: Hello.</s> USER: Who? ASSISTANT:"),
        (
            None,
            ["Hi.", [text("I "), {"type": "thinking", "thinking": "Hm", "signature": "x"}]],
            "USER: Hi. ASSISTANT: I",
        ),
        (None, [[image(), text("What?")]], "USER: <image>\nWhat? ASSISTANT:"),
        (
            None,
            ["Look.", [text("So:"), USED], [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Open."}]],
            f"USER: Look. ASSISTANT: So:\n{CALL}</s> USER: look returned: Open. ASSISTANT:",
        ),
    ],
    ids=["system", "system blocks", "blocks", "turns", "thinking", "image", "tool"],
)
async def test_what_the_model_is_shown(
    client: httpx.AsyncClient, engine: ScriptedEngine, system: Any, messages: list[Any], prompt: str
) -> None:
    request = body(*messages, system=system)
    assert (await client.post(MESSAGES, json=request)).status_code == 200
    shown = re.sub("(<image> ?)+", "<image>", prompt_of(engine))
    assert (shown if system else shown.partition("questions. ")[2]) == prompt


async def test_system_messages_among_the_others(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    request = body("Hi.", system="Be brief.")
    request["messages"].append({"role": "system", "content": "Be kind."})
    assert (await client.post(MESSAGES, json=request)).status_code == 200
    assert prompt_of(engine) == "Be brief.\nBe kind. USER: Hi. ASSISTANT:"


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "image/png", "data": png("red")},
        {"type": "base64", "media_type": "IMAGE/JPG", "data": png("red")},
        {"type": "base64", "data": png("red")},
        {"type": "base64", "media_type": "image/png", "data": RED},
        {"type": "url", "url": RED},
    ],
    ids=["base64", "another media type", "no media type", "a data: URL as base64", "a data: URL"],
)
async def test_an_image_is_the_one_that_chat_shows(
    client: httpx.AsyncClient, engine: ScriptedEngine, source: dict[str, Any]
) -> None:
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": RED}}]
    await client.post(CHAT, json={"model": "tiny", "messages": [{"role": "user", "content": content}]})
    reply = await client.post(MESSAGES, json=body([text("What?"), image(**source)]))
    assert reply.status_code == 200
    in_chat, here = engine.requests
    assert here.token_ids == in_chat.token_ids
    assert here.images[0].cache_key == in_chat.images[0].cache_key


async def test_images_in_a_tools_result(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    other = image(type="base64", media_type="image/png", data=png("blue"))
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [image(), text("A door."), other],
        "is_error": True,
    }
    reply = await client.post(MESSAGES, json=body([image()], [USED], [result, text("So?")]))
    assert reply.status_code == 200
    (asked,) = engine.requests
    assert len(asked.images) == 3
    assert asked.images[0].cache_key == asked.images[1].cache_key != asked.images[2].cache_key
    assert prompt_of(engine).endswith("look returned: Error:\nA door.\nSo? ASSISTANT:")


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"top_p": 0.9}, "top_p", 0.9),
        ({"top_k": 5}, "top_k", 5),
        ({"stop_sequences": ["a", "b", "c", "d", "e"]}, "stop", ("a", "b", "c", "d", "e")),
        ({"stop_sequences": []}, "stop", ()),
    ],
)
async def test_sampling(
    client: httpx.AsyncClient, engine: ScriptedEngine, given: dict[str, Any], field: str, value: object
) -> None:
    assert (await client.post(MESSAGES, json=body(**given))).status_code == 200
    assert getattr(engine.requests[0].sampling, field) == value


@pytest.mark.parametrize(
    "more",
    [
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"metadata": {"user_id": "u"}, "service_tier": "auto"},
        {"context_management": {"edits": []}, "made_up": 1, "inference_geo": None},
        {"system": [{**text("Be brief."), "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        {"tools": [{**LOOK, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}]},
        {"messages": [{"role": "user", "content": [{**image(), "cache_control": None, "made_up": 1}], "id": "m"}]},
        {"messages": [{"role": "user", "content": [{**text("Hi."), "citations": None}]}]},
        {"output_config": {"effort": "high"}},
        {"max_tokens": None},
    ],
)
async def test_what_changes_nothing_is_ignored(client: httpx.AsyncClient, more: dict[str, Any]) -> None:
    reply = await client.post(MESSAGES, json=body() | more)
    assert reply.json()["content"][0]["text"] == "A red circle."


@pytest.mark.parametrize(
    ("reason", "stop_text", "expected"),
    [
        ("stop", None, ("end_turn", None)),
        ("length", None, ("max_tokens", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("stop", "</s>", ("end_turn", None)),
    ],
    ids=["end", "length", "its own stop", "the model's stop"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_why_it_ended(
    client: httpx.AsyncClient,
    engine: ScriptedEngine,
    reason: Any,
    stop_text: str | None,
    expected: tuple[str, str | None],
    stream: bool,
) -> None:
    engine.finish_reason, engine.stop_text = reason, stop_text
    reply = await client.post(MESSAGES, json=body(stop_sequences=["END", "###"], stream=stream))
    end = events_of(reply.content)[-2]["delta"] if stream else reply.json()
    assert (end["stop_reason"], end["stop_sequence"]) == expected


@pytest.mark.parametrize("tools", [None, [LOOK]])
async def test_an_answer_that_is_begun_is_continued(
    client: httpx.AsyncClient, engine: ScriptedEngine, tools: Any
) -> None:
    engine.say(" circle", ".")
    reply = await client.post(MESSAGES, json=body("What?", "A red", tools=tools))
    assert reply.json()["content"] == [{"type": "text", "text": " circle.", "citations": None}]
    assert prompt_of(engine).endswith("USER: What? ASSISTANT: A red")
    assert engine.requests[0].sampling.grammar is None
    assert ("Looks at a place." in prompt_of(engine)) == (tools is not None)


class TestTools:
    @pytest.mark.parametrize(
        ("choice", "starts", "calls"),
        [
            (None, "start: / ?/ calls | TEXT", 'calls: call ("\\n" call){0,7}'),
            ({"type": "auto"}, "start: / ?/ calls | TEXT", 'calls: call ("\\n" call){0,7}'),
            ({"type": "auto", "disable_parallel_tool_use": True}, "start: / ?/ calls | TEXT", "calls: call"),
            ({"type": "any"}, "start: / ?/ calls", 'calls: call ("\\n" call){0,7}'),
            ({"type": "any", "disable_parallel_tool_use": True}, "start: / ?/ calls", "calls: call"),
            ({"type": "tool", "name": "look"}, "start: / ?/ calls", "calls: call"),
        ],
    )
    async def test_choices(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, choice: Any, starts: str, calls: str
    ) -> None:
        engine.say(CALL)
        reply = await client.post(MESSAGES, json=body(tools=[LOOK], tool_choice=choice))
        (block,) = reply.json()["content"]
        assert block == {"type": "tool_use", "id": block["id"], "name": "look", "input": {"at": "the door"}}
        assert reply.json()["stop_reason"] == "tool_use"
        lines = (engine.requests[0].sampling.grammar or "").splitlines()
        assert lines[0] == starts
        assert calls in lines
        assert '{"name": "look", "description": "Looks at a place.", "parameters": {"type": "object"' in prompt_of(
            engine
        )

    async def test_none(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        reply = await client.post(MESSAGES, json=body(tools=[LOOK], tool_choice={"type": "none"}))
        assert reply.json()["content"][0]["text"] == "A red circle."
        assert engine.requests[0].sampling.grammar is None

    async def test_streamed_calls(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        whole = f"{CALL}\n{CALL}"
        engine.say(*(whole[start : start + 7] for start in range(0, len(whole), 7)))
        reply = await client.post(MESSAGES, json=body(tools=[LOOK], stream=True))
        events = events_of(reply.content)
        started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        assert [(block["type"], block["name"], block["input"]) for block in started] == [("tool_use", "look", {})] * 2
        assert started[0]["id"] != started[1]["id"]
        for index in (0, 1):
            pieces = [
                event["delta"]["partial_json"]
                for event in events
                if event["type"] == "content_block_delta" and event["index"] == index
            ]
            assert len(pieces) > 1
            assert json.loads("".join(pieces)) == {"at": "the door"}
        assert events[-2]["delta"]["stop_reason"] == "tool_use"

    async def test_a_call_that_was_cut(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        engine.say(CALL[:-6])
        engine.finish_reason = "length"
        reply = (await client.post(MESSAGES, json=body(tools=[LOOK]))).json()
        assert (reply["stop_reason"], reply["content"][0]["input"]) == ("max_tokens", {"at": "the d"})

    async def test_its_own_answer_and_a_result_go_back(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        engine.say(CALL)
        first = (await client.post(MESSAGES, json=body("Look.", tools=[LOOK]))).json()
        engine.say(" It is open.")
        result = {"type": "tool_result", "tool_use_id": first["content"][0]["id"], "content": [text("Open.")]}
        second = await client.post(MESSAGES, json=body("Look.", first["content"], [result], tools=[LOOK]))
        assert second.json()["content"][0]["text"] == "It is open."
        assert prompt_of(engine).endswith(f"ASSISTANT: {CALL}</s> USER: look returned: Open. ASSISTANT:")

    async def test_a_long_name(self, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        name = "mcp__" + "a" * 100
        engine.say(f'{{"name": "{name}", "arguments": {{"at": ""}}}}')
        reply = await client.post(MESSAGES, json=body(tools=[{**LOOK, "name": name}]))
        assert reply.json()["content"][0]["name"] == name


@pytest.mark.parametrize("field", ["output_config", "output_format"])
async def test_an_answer_in_json(client: httpx.AsyncClient, engine: ScriptedEngine, field: str) -> None:
    engine.say('{"at": "', 'home"}')
    form = {"type": "json_schema", "schema": LOOK["input_schema"]}
    wanted = {"output_config": {"format": form}} if field == "output_config" else {field: form}
    reply = await client.post(MESSAGES, json=body(**wanted))
    assert reply.json()["content"][0]["text"] == '{"at": "home"}'
    assert '"at"' in (engine.requests[0].sampling.grammar or "")


class TestLargeImages:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"max_body_bytes": 40_000_000, "max_image_bytes": 10_000_000, "max_image_pixels": 3_000_000}

    async def test_their_base64_does_not_count_as_text(self, client: httpx.AsyncClient) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (1600, 1500), "red").save(buffer, "BMP")
        data = base64.b64encode(buffer.getvalue()).decode()
        assert len(data) > 9_000_000
        reply = await client.post(MESSAGES, json=body([image(type="base64", data=data), image(), text("What?")]))
        assert reply.status_code == 200
        too_much = await client.post(MESSAGES, json=body([image(type="base64", data=data), text("a" * 9_000_000)]))
        assert "besides its images" in too_much.json()["error"]["message"]


class TestCountTokens:
    @pytest.mark.parametrize("messages", [["Hi."], [[image(), text("What?")]], ["Hi.", "Hello", [image(), image()]]])
    async def test_it_is_what_the_engine_would_be_given(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, messages: list[Any]
    ) -> None:
        wanted = body(*messages, system="Be brief.", tools=[LOOK])
        del wanted["max_tokens"]
        counted = (await client.post(COUNT, json=wanted)).json()
        assert engine.requests == []
        usage = (await client.post(MESSAGES, json=wanted)).json()["usage"]
        assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
        assert counted["input_tokens"] == len(engine.requests[0].token_ids)

    async def test_more_than_fits(self, client: httpx.AsyncClient) -> None:
        counted = (await client.post(COUNT, json=body("word " * 3000))).json()
        assert counted["input_tokens"] > 3000


async def test_a_caller_that_leaves_frees_the_engine(
    client: httpx.AsyncClient, app: FastAPI, engine: ScriptedEngine
) -> None:
    engine.pause_seconds = 0.02
    engine.say(*["word "] * 500)
    asking = asyncio.create_task(client.post(MESSAGES, json=body(stream=True, max_tokens=1000)))
    await until(lambda: engine.unfinished == 1)
    asking.cancel()
    await until(lambda: engine.unfinished == 0)
    assert app.state.services.admission.running == 0


async def test_the_served_models(client: httpx.AsyncClient) -> None:
    """At OpenAI's address, for requests with a header of Anthropic's clients."""
    headers = {"anthropic-version": "2023-06-01"}
    listed = (await client.get("/v1/models?limit=20", headers=headers)).json()
    names = ["owner/tiny", "tiny", "birds"]
    assert [model.pop("created_at")[-1] for model in listed["data"]] == ["Z"] * 3
    assert listed == {
        "data": [{"type": "model", "id": name, "display_name": name} for name in names],
        "has_more": False,
        "first_id": "owner/tiny",
        "last_id": "birds",
    }
    one = (await client.get("/v1/models/owner/tiny", headers=headers)).json()
    assert (one["type"], one["id"]) == ("model", "owner/tiny")
    assert (await client.get("/v1/models")).json()["object"] == "list"
