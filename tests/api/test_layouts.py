"""Which prompt the model is shown for the layouts of messages that clients send, in three APIs."""

import base64
import io
import json
import re
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.api.test_chat import CHAT, TOKENIZER, prompt_of, text_body
from tests.support.scripted_engine import ScriptedEngine

COLOURS = ("red", "lime", "blue")
CALL = '{"name": "look", "arguments": {"at": "door"}}'
FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
Message = tuple[str, ...]
"""A role and the parts: texts, and names of colours for images. ``call`` and ``tool`` are a call and its result."""


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"ollama_api": True, "max_images_per_request": 4}


def png(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def chat_part(part: str) -> dict[str, Any]:
    if part in COLOURS:
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(part)}"}}
    return {"type": "text", "text": part}


def chat_message(role: str, *parts: str) -> dict[str, Any]:
    if role == "call":
        called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "door"}'}}
        return {"role": "assistant", "content": None, "tool_calls": [called]}
    answers = {"tool_call_id": "1"} if role == "tool" else {}
    return {"role": role, "content": [chat_part(part) for part in parts], **answers}


def anthropic_block(part: str) -> dict[str, Any]:
    if part in COLOURS:
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(part)}}
    return {"type": "text", "text": part}


def anthropic_message(role: str, *parts: str) -> dict[str, Any]:
    blocks = [anthropic_block(part) for part in parts]
    if role == "call":
        blocks, role = [{"type": "tool_use", "id": "1", "name": "look", "input": {"at": "door"}}], "assistant"
    elif role == "tool":
        blocks, role = [{"type": "tool_result", "tool_use_id": "1", "content": blocks}], "user"
    return {"role": role, "content": blocks}


def ollama_message(role: str, *parts: str) -> dict[str, Any]:
    if role == "call":
        called = {"function": {"name": "look", "arguments": {"at": "door"}}}
        return {"role": "assistant", "content": "", "tool_calls": [called]}
    texts, images = [part for part in parts if part not in COLOURS], [png(part) for part in parts if part in COLOURS]
    return {"role": role, "content": "\n".join(texts), "images": images}


APIS = {CHAT: chat_message, "/v1/messages": anthropic_message, "/api/chat": ollama_message}


def shown(engine: ScriptedEngine) -> tuple[str, list[str]]:
    """The last prompt without the default system text, and the colours of its images in the prompt's order."""
    prompt = re.sub("(<image> ?)+", "<image>", prompt_of(engine)).split("questions. ")[-1]
    images = sorted(engine.requests[-1].images, key=lambda image: image.offset)
    return prompt, [COLOURS[int(image.pixels[:, 42, 42].argmax())] for image in images]


LAYOUTS: list[tuple[str, list[Message], str, list[str]]] = [
    (
        "image in the system message",
        [("system", "Be brief.", "red"), ("user", "blue", "What?")],
        "Be brief. USER: <image>\n<image>\nWhat? ASSISTANT:",
        ["red", "blue"],
    ),
    (
        "only an image in the system message",
        [("system", "red"), ("user", "What?")],
        "USER: <image>\nWhat? ASSISTANT:",
        ["red"],
    ),
    (
        "system message with an image in the middle",
        [("user", "red", "A?"), ("assistant", "Yes."), ("system", "lime", "Be brief."), ("user", "blue", "B?")],
        "Be brief. USER: <image>\nA? ASSISTANT: Yes.</s> USER: <image>\n<image>\nB? ASSISTANT:",
        ["red", "lime", "blue"],
    ),
    (
        "system message with an image last",
        [("user", "red", "A?"), ("system", "blue", "Be brief.")],
        "Be brief. USER: <image>\n<image>\nA? ASSISTANT:",
        ["red", "blue"],
    ),
    (
        "image in an assistant's message",
        [("user", "Draw."), ("assistant", "Here.", "red"), ("user", "What?")],
        "USER: Draw. ASSISTANT: <image>\nHere.</s> USER: What? ASSISTANT:",
        ["red"],
    ),
    (
        "images of both",
        [("user", "red", "A?"), ("assistant", "B.", "lime"), ("user", "blue", "C?")],
        "USER: <image>\nA? ASSISTANT: <image>\nB.</s> USER: <image>\nC? ASSISTANT:",
        ["red", "lime", "blue"],
    ),
    (
        "image in a greeting",
        [("assistant", "red", "Hi."), ("user", "What?")],
        "USER:  ASSISTANT: <image>\nHi.</s> USER: What? ASSISTANT:",
        ["red"],
    ),
    (
        "image in a tool's result",
        [("user", "red", "Look."), ("call",), ("tool", "Open.", "lime"), ("user", "blue", "So?")],
        f"USER: <image>\nLook. ASSISTANT: {CALL}</s> USER: <image>\n<image>\nlook returned: Open.\nSo? ASSISTANT:",
        ["red", "lime", "blue"],
    ),
    ("assistant last", [("user", "What?"), ("assistant", "A red")], "USER: What? ASSISTANT: A red", []),
    (
        "assistant last, with an image",
        [("user", "blue", "Draw."), ("assistant", "red", "Here")],
        "USER: <image>\nDraw. ASSISTANT: <image>\nHere",
        ["blue", "red"],
    ),
    ("only an assistant's message", [("assistant", "A red")], "USER:  ASSISTANT: A red", []),
    ("an empty assistant's message last", [("user", "What?"), ("assistant", "")], "USER: What? ASSISTANT:", []),
    (
        "a call last",
        [("user", "Look."), ("call",)],
        f"USER: Look. ASSISTANT: {CALL}</s> USER:  ASSISTANT:",
        [],
    ),
    (
        "system message last, after the assistant's",
        [("user", "Hi."), ("assistant", "Hello."), ("system", "Name the topic.")],
        "Name the topic. USER: Hi. ASSISTANT: Hello.</s> USER:  ASSISTANT:",
        [],
    ),
    ("only a system message", [("system", "Say hello.")], "Say hello. USER:  ASSISTANT:", []),
    ("only system messages", [("system", "A."), ("system", ""), ("system", "B.")], "A.\nB. USER:  ASSISTANT:", []),
    ("no system text", [("system", ""), ("user", "What?")], "USER: What? ASSISTANT:", []),
    ("no text", [("user", "red")], "USER: <image>\n ASSISTANT:", ["red"]),
    ("nothing", [("user", "")], "USER:  ASSISTANT:", []),
    (
        "messages of one role in a row",
        [
            ("user", "A", "red"),
            ("user", ""),
            ("user", "B", "blue"),
            ("assistant", "C"),
            ("assistant", "D"),
            ("user", "E"),
        ],
        "USER: <image>\n<image>\nA\nB ASSISTANT: C\nD</s> USER: E ASSISTANT:",
        ["red", "blue"],
    ),
]


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize(
    ("messages", "prompt", "colours"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS]
)
async def test_a_layout(
    client: httpx.AsyncClient,
    engine: ScriptedEngine,
    path: str,
    messages: list[Message],
    prompt: str,
    colours: list[str],
) -> None:
    body = {"model": "tiny", "messages": [APIS[path](*message) for message in messages], "stream": False}
    reply = await client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert shown(engine) == (prompt, colours)
    if path == CHAT:
        explained = (await client.post("/v1/explain", json=body)).json()
        assert explained["prompt_token_ids"] == engine.requests[0].token_ids


@pytest.mark.parametrize("path", APIS)
async def test_images_of_all_messages_count(client: httpx.AsyncClient, engine: ScriptedEngine, path: str) -> None:
    messages = [("system", "red"), ("assistant", "lime"), ("user", "blue", "red"), ("assistant", "red"), ("user", "A?")]
    made = [APIS[path](*message) for message in messages]
    reply = await client.post(path, json={"model": "tiny", "messages": made, "stream": False})
    assert reply.status_code == 400
    assert "up to 4 images" in reply.text
    assert engine.requests == []


async def test_the_image_that_is_wrong_is_named(client: httpx.AsyncClient) -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for place, role in enumerate(("system", "user", "assistant")):
        messages = [chat_message(role, "red") for role in ("system", "user", "assistant")]
        messages[place] = {"role": role, "content": [chat_part("A"), broken]}
        error = (await client.post(CHAT, json={"model": "tiny", "messages": messages})).json()["error"]
        assert (error["param"], error["code"]) == (f"messages[{place}].content[1].image_url", "invalid_image")


# Whether an answer is continued

BEGUN = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A red"}]
CONTINUED, ANSWERED = "USER: What? ASSISTANT: A red", "USER: What? ASSISTANT: A red</s> USER:  ASSISTANT:"
JSON_FORMAT = {"type": "json_object"}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({}, CONTINUED),
        ({"continue_final_message": True}, CONTINUED),
        ({"continue_final_message": True, "add_generation_prompt": False}, CONTINUED),
        ({"add_generation_prompt": False}, CONTINUED),
        ({"continue_final_message": False}, ANSWERED),
        ({"continue_final_message": False, "add_generation_prompt": True}, ANSWERED),
        ({"add_generation_prompt": True}, ANSWERED),
        ({"tools": TOOLS}, CONTINUED),
        ({"tools": TOOLS, "continue_final_message": True}, CONTINUED),
        ({"tools": TOOLS, "tool_choice": "none"}, CONTINUED),
        ({"tools": TOOLS, "continue_final_message": False}, ANSWERED),
        ({"tools": TOOLS, "tool_choice": "required"}, ANSWERED),
        ({"response_format": JSON_FORMAT}, ANSWERED),
    ],
    ids=json.dumps,
)
async def test_an_assistants_message_last(
    client: httpx.AsyncClient, engine: ScriptedEngine, fields: dict[str, Any], ending: str
) -> None:
    if "tools" in fields or "response_format" in fields:
        engine.say(CALL)
    reply = await client.post(CHAT, json=text_body(messages=BEGUN, **fields))
    assert reply.status_code == 200
    assert prompt_of(engine).endswith(ending)
    formed = ending == ANSWERED and ("tools" in fields or "response_format" in fields)
    assert (engine.requests[0].sampling.grammar is not None) == formed
    assert ("You can call these functions" in prompt_of(engine)) == (
        "tools" in fields and fields.get("tool_choice") != "none"
    )
    message = reply.json()["choices"][0]["message"]
    assert ("tool_calls" in message) == (formed and "tools" in fields)


@pytest.mark.parametrize("more", [{}, {"continue_final_message": False}], ids=str)
async def test_a_prompt_without_the_assistants_header(
    client: httpx.AsyncClient, engine: ScriptedEngine, more: dict[str, Any]
) -> None:
    body = text_body("What?", add_generation_prompt=False, **more)
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert prompt_of(engine).endswith("USER: What?")
    counted = (await client.post("/tokenize", json=body)).json()
    assert counted["tokens"] == engine.requests[0].token_ids
    whole = (await client.post("/tokenize", json=text_body("What?"))).json()
    assert TOKENIZER.decode(whole["tokens"][counted["count"] :]) == "ASSISTANT:"
    scored = {"structured_outputs": {"choice": ["a"]}, "logprobs": True}
    refused = await client.post(CHAT, json=body | scored)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "add_generation_prompt")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": BEGUN[:1], "continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "response_format": JSON_FORMAT}, "continue_final_message"),
        ({"continue_final_message": True, "tools": TOOLS, "tool_choice": "required"}, "continue_final_message"),
        ({"add_generation_prompt": False, "response_format": JSON_FORMAT}, "add_generation_prompt"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"continue_final_message": False, "add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
async def test_what_cannot_be_continued(
    client: httpx.AsyncClient, engine: ScriptedEngine, more: dict[str, Any], param: str
) -> None:
    reply = await client.post(CHAT, json=text_body() | {"messages": BEGUN} | more)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": FUNCTION["parameters"]}}}),
        ("/v1/messages", {"tools": [{"name": "look", "input_schema": {}}], "tool_choice": {"type": "any"}}),
        ("/api/chat", {"format": "json"}),
    ],
)
async def test_json_and_calls_do_not_go_on_with_words(
    client: httpx.AsyncClient, engine: ScriptedEngine, path: str, fields: dict[str, Any]
) -> None:
    engine.say(CALL)
    reply = await client.post(path, json={"model": "tiny", "messages": BEGUN, "stream": False, **fields})
    assert reply.status_code == 200
    assert prompt_of(engine).endswith(ANSWERED)
    assert engine.requests[0].sampling.grammar is not None


# Forms of one content

RED = chat_part("red")
URL = RED["image_url"]["url"]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "What?"}, RED],
        ["What?", RED],
        [{"text": "What?"}, {"image_url": {"url": URL}}],
        [{"text": "What?"}, {"image_url": URL, "detail": "low"}],
        [{"text": "What?", "type": None}, {"image_url": URL, "type": ""}],
        [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": URL}],
        [{"type": "output_text", "text": "What?", "annotations": []}, RED],
        ["", RED, "What?", {"type": "text", "text": None}],
    ],
)
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
async def test_a_part_in_another_form(
    client: httpx.AsyncClient, engine: ScriptedEngine, role: str, content: list[Any]
) -> None:
    for given in ([RED, {"type": "text", "text": "What?"}], content):
        messages = [{"role": role, "content": given}, {"role": "user", "content": "So?"}]
        reply = await client.post(CHAT, json={"model": "tiny", "messages": messages})
        assert reply.status_code == 200, reply.text
    wanted, found = engine.requests
    assert found.token_ids == wanted.token_ids
    assert found.images[0].cache_key == wanted.images[0].cache_key


async def test_anthropics_blocks_without_type(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    source = anthropic_block("red")["source"]
    used, result = {"id": "1", "name": "look", "input": {"at": "door"}}, {"tool_use_id": "1", "content": ["Open."]}
    contents: list[list[Any]] = [["What?", {"source": source}], [{"text": "So:"}, used], [result]]
    messages = [{"role": ("user", "assistant")[place % 2], "content": one} for place, one in enumerate(contents)]
    body = {"model": "tiny", "max_tokens": 9, "system": ["Be brief."], "messages": messages}
    assert (await client.post("/v1/messages", json=body)).status_code == 200
    prompt = f"Be brief. USER: <image>\nWhat? ASSISTANT: So:\n{CALL}</s> USER: look returned: Open. ASSISTANT:"
    assert shown(engine) == (prompt, ["red"])


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize("content", [None, "", [], [""]], ids=repr)
async def test_an_empty_content(client: httpx.AsyncClient, engine: ScriptedEngine, role: str, content: object) -> None:
    fields = {"tool_call_id": "1"} if role == "tool" else {"name": 5, "tool_calls": None}
    messages = [chat_message("user", "Look."), chat_message("call"), {"role": role, "content": content, **fields}]
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [*messages, chat_message("user", "So?")]})
    assert reply.status_code == 200, reply.text
    returned = "look returned:\n" if role == "tool" else ""
    assert prompt_of(engine).endswith(f"ASSISTANT: {CALL}</s> USER: {returned}So? ASSISTANT:")
