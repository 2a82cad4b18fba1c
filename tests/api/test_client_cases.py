"""Requests that real clients send, over the product's own HTTP server to a scripted engine.

Each file in ``client_cases/`` has one kind of request, a row for each: ``id``, ``source`` (who sends it), ``path``,
``body`` (``$IMAGE`` is the URL of an image) and what is expected:

- ``status``: of the answer; default 200
- ``text``: what the model says, whole or streamed; default: what the scripted engine says
- ``ignored``: the header x-llava-ignored; default: none
- ``prompt``: a text within the prompt that the engine was given, with ``<image>`` once for each image
- ``images``: number of images that the engine was given; default 1 for each ``$IMAGE``
- ``engine``, ``sampling``: fields of the engine's request and of its sampling parameters
- ``reply``: fields of the reply
- ``chunks_with_usage``: whether all chunks of a stream, none of them or only the last have usage
- ``error``: fields of the error
"""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.api.test_chat import RED, prompt_of
from tests.support.openai_schemas import ValidatingTransport
from tests.support.scripted_engine import ScriptedEngine

FILES = sorted((Path(__file__).parent / "client_cases").glob("*.json"))
CASES = [pytest.param(row, id=row["id"]) for file in FILES for row in json.loads(file.read_text())]
Case = dict[str, Any]


@pytest_asyncio.fixture
async def http(port: int) -> AsyncIterator[httpx.AsyncClient]:
    transport = ValidatingTransport(httpx.AsyncHTTPTransport())
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}") as opened:
        yield opened


@pytest.mark.parametrize("case", CASES)
async def test_a_request_of_a_real_client(http: httpx.AsyncClient, engine: ScriptedEngine, case: Case) -> None:
    body = json.dumps(case["body"] | {"model": "tiny"})
    reply = await http.post(
        case["path"],
        content=body.replace("$IMAGE", RED),
        headers={"content-type": "application/json"},
    )
    assert reply.status_code == case.get("status", 200), reply.text
    assert reply.headers.get("x-llava-ignored") == case.get("ignored")
    if reply.status_code != 200:
        assert case["error"].items() <= reply.json()["error"].items()
        assert engine.requests == []
        return
    streamed = reply.headers["content-type"].startswith("text/event-stream")
    data = events(reply.text) if streamed else [reply.json()]
    spoken = case.get("text", "".join(engine.texts).strip() if case["path"] != "/v1/completions" else None)
    assert text_of(data) == ("".join(engine.texts) if spoken is None else spoken)
    assert case.get("reply", {}).items() <= data[-1].items()
    [asked] = engine.requests
    assert len(asked.images) == case.get("images", body.count("$IMAGE"))
    assert case.get("prompt", "") in re.sub("(<image> ?)+", "<image>", prompt_of(engine))
    for name, value in case.get("engine", {}).items():
        assert getattr(asked, name) == value, name
    for name, value in case.get("sampling", {}).items():
        found = getattr(asked.sampling, name)
        assert (list(found) if isinstance(found, tuple) else found) == value, name
    if "chunks_with_usage" in case:
        usages = [chunk.get("usage") is not None for chunk in data]
        last = [False] * (len(usages) - 1) + [True]
        assert (
            usages
            == {"all": [True] * len(usages), "none": [False] * len(usages), "last": last}[case["chunks_with_usage"]]
        )


def events(stream: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(data: list[dict[str, Any]]) -> str:
    """The text of a reply, or of all chunks or events of a stream."""
    found = []
    for each in data:
        for choice in each.get("choices", []):
            message = choice.get("message") or choice.get("delta") or choice
            found.append(message.get("content") or message.get("text") or "")
        if each.get("type") == "response.output_text.delta":
            found.append(each["delta"])
        for item in each.get("output", []):
            found += [part["text"] for part in item.get("content", [])]
    return "".join(found)
