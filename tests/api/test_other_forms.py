"""What is written as another API writes it is refused with the form that is right here."""

from typing import Any

import httpx
import pytest

from tests.api.test_chat import CHAT, RED, text_body
from tests.support.scripted_engine import ScriptedEngine

MESSAGES, RESPONSES, OLLAMA = "/v1/messages", "/v1/responses", "/api/chat"
BASE64 = RED.partition(",")[2]
IMAGES = {
    "OpenAI": {"type": "image_url", "image_url": {"url": RED}},
    "Responses": {"type": "input_image", "image_url": RED},
    "Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
    "Gemini": {"inline_data": {"mime_type": "image/png", "data": BASE64}},
    "transformers": {"type": "image", "url": RED},
}
TOOLS = {
    "OpenAI": {"type": "function", "function": {"name": "look"}},
    "Responses": {"type": "function", "name": "look", "parameters": {"type": "object"}},
    "Anthropic": {"name": "look", "input_schema": {"type": "object"}},
    "Gemini": {"function_declarations": [{"name": "look"}]},
}
CHOICES = {
    "name": "look",
    "OpenAI": {"type": "function", "function": {"name": "look"}},
    "Responses": {"type": "function", "name": "look"},
    "Anthropic": {"type": "tool", "name": "look"},
}
CHAT_TOOL = '{"type": "function", "function": {"name": ...'
FORMS: dict[str, dict[str, str]] = {
    CHAT: {"image": '{"type": "image_url"', "tool": CHAT_TOOL, "choice": f"none, auto, required or {CHAT_TOOL}"},
    RESPONSES: {
        "image": '{"type": "image_url"',
        "tool": '{"type": "function", "name": ...',
        "choice": 'none, auto, required or {"type": "function", "name": ...',
    },
    MESSAGES: {
        "image": '{"type": "image", "source"',
        "tool": '{"name": ..., "input_schema": {...}}',
        "choice": '{"type": "tool", "name": ...}',
    },
    OLLAMA: {"image": "a text, with the message's images in its field images", "tool": CHAT_TOOL},
}
"""Path -> how it takes an image, a tool, and the choice of a tool."""
OWN = {CHAT: "OpenAI", RESPONSES: "Responses", MESSAGES: "Anthropic", OLLAMA: "OpenAI"}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"ollama_api": True}


def asked(path: str, content: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "input" if path == RESPONSES else "messages": messages, "max_tokens": 9, **more}


async def said(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    reply = await client.post(path, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("path", FORMS)
async def test_an_image(client: httpx.AsyncClient, path: str) -> None:
    taken = ["Anthropic"] if path == MESSAGES else [] if path == OLLAMA else ["OpenAI", "Responses"]
    for name, part in IMAGES.items():
        if name in taken:
            assert (await client.post(path, json=asked(path, [part]))).status_code == 200
        else:
            assert f"write it as {FORMS[path]['image']}" in await said(client, path, asked(path, [part]))


@pytest.mark.parametrize("path", FORMS)
async def test_a_tool(client: httpx.AsyncClient, path: str) -> None:
    for name, tool in TOOLS.items():
        body = asked(path, "Hi", tools=[tool])
        if name == OWN[path]:
            assert (await client.post(path, json=body)).status_code == 200
        else:
            assert f"write it as {FORMS[path]['tool']}" in await said(client, path, body)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((CHAT, name) for name in ("name", "Responses", "Anthropic")),
        *((RESPONSES, name) for name in ("name", "OpenAI")),
        *((MESSAGES, name) for name in ("name", "OpenAI")),
    ],
)
async def test_the_choice_of_a_tool(client: httpx.AsyncClient, path: str, name: str) -> None:
    body = asked(path, "Hi", tools=[TOOLS[OWN[path]]], tool_choice=CHOICES[name])
    assert f"write it as {FORMS[path]['choice']}" in await said(client, path, body)


async def test_a_format_of_ollamas(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    for given in ("xml", "json_object", [1]):
        message = await said(client, OLLAMA, text_body(format=given))
        assert 'write it as "json" or a JSON Schema' in message
    assert engine.requests == []
