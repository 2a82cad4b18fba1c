"""Long work is done in threads: while a request is in it, others are answered."""

import asyncio
import threading
from typing import Any

import httpx
import pytest

from llava_api.chat import answers, completion_reply, plain, prepare, response_store
from llava_api.prompts.tokenizer import TextTokenizer
from tests.api.test_chat import CHAT, text_body
from tests.api.test_sampling_fields import COMPLETIONS
from tests.support.endpoints import HEALTH
from tests.support.scripted_engine import ScriptedEngine

CHOICES = {"structured_outputs": {"choice": ["a", "b"]}, "logprobs": True}
ECHO = {"model": "tiny", "prompt": "Hi", "echo": True, "logprobs": 1}
SCORED = {"model": "tiny", "prompt": "Hi", **CHOICES, "logprobs": 1}
LONG_WORK: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "writing token strings": (TextTokenizer, "piece", "/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    "writing an echo": (completion_reply.Columns, "fill", COMPLETIONS, ECHO),
    "writing choices": (prepare, "scored_prompts", CHAT, text_body(**CHOICES)),
    "writing a completion's choices": (plain, "scored_prompts", COMPLETIONS, SCORED),
    "comparing choices": (answers, "scored_choices", CHAT, text_body(**CHOICES)),
    "reading stored items": (response_store, "json_list", "/v1/responses", {"model": "tiny", "input": "And?"}),
}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"response_store_bytes": 100_000}


@pytest.mark.parametrize("name", LONG_WORK)
async def test_others_are_answered_meanwhile(
    client: httpx.AsyncClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place, function, path, body = LONG_WORK[name]
    engine.say("a")
    if path == "/v1/responses":
        body = body | {"previous_response_id": (await client.post(path, json=body)).json()["id"]}
    work, begun, answered = getattr(place, function), threading.Event(), threading.Event()

    def work_until_another_is_answered(*arguments: Any) -> Any:
        begun.set()
        assert answered.wait(5)
        return work(*arguments)

    monkeypatch.setattr(place, function, work_until_another_is_answered)
    asking = asyncio.create_task(client.post(path, json=body))
    assert await asyncio.to_thread(begun.wait, 5)
    assert (await client.get(HEALTH[0])).status_code == 200
    answered.set()
    assert (await asking).status_code == 200
