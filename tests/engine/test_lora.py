"""LoRA adapters that are loaded, replaced and unloaded while the engine answers, through the server's own addresses."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import pytest
import pytest_asyncio

from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from tests.engine.conftest import Running
from tests.support.questions import data_url
from tests.support.running_server import serve_app
from training.drawings import new_drawing

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "sk-llava-for-admins-0123456789"
CHAT = "/chat/completions"
PICTURE = data_url(new_drawing(Random("adapters"), (300, 200)).image)


@pytest_asyncio.fixture(loop_scope="session")
async def admin(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with keys, in front of the session's engine."""
    services = running.services
    keyed = services.settings.model_copy(update={"api_key": [f"admin={KEY}"]})
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        serve_app(create_app(keyed, KeyRing(keyed), services)) as server,
        httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=60) as client,
    ):
        yield client


def body(model: str, **more: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "What is it?"}]
    return {"model": model, "messages": [{"role": "user", "content": parts}], "temperature": 0, **more}


async def logprobs(admin: httpx.AsyncClient, model: str) -> tuple[list[tuple[str, float]], int]:
    """(the answer's tokens with their log-probabilities, how many of the prompt's came from the prefix cache)."""
    reply = (await admin.post(CHAT, json=body(model, max_tokens=6, logprobs=True))).json()
    tokens = reply["choices"][0]["logprobs"]["content"]
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return [(token["token"], token["logprob"]) for token in tokens], cached


async def stream(admin: httpx.AsyncClient, model: str, tokens: int, texts: list[str]) -> str:
    async with admin.stream("POST", CHAT, json=body(model, max_tokens=tokens, stream=True)) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                texts.append(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or "")
    return "".join(texts)


async def load(admin: httpx.AsyncClient, name: str, path: str, *, in_place: bool = False) -> None:
    wanted = {"lora_name": name, "lora_path": path, "load_inplace": in_place}
    reply = await admin.post("/load_lora_adapter", json=wanted)
    assert reply.status_code == 200, reply.text


async def unload(admin: httpx.AsyncClient, name: str) -> None:
    assert (await admin.post("/unload_lora_adapter", json={"lora_name": name})).status_code == 200


async def until_engine_holds(running: Running, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await running.engine.llm.list_loras()) != count:
            await asyncio.sleep(0.01)


async def test_an_adapter_loaded_under_load_answers_as_one_of_the_start_and_disturbs_no_other_answer(
    running: Running, admin: httpx.AsyncClient
) -> None:
    alone = await stream(admin, "endless", 150, [])
    of_model, _ = await logprobs(admin, "endless")
    of_start, _ = await logprobs(admin, "first")
    texts: list[str] = []
    beside = asyncio.create_task(stream(admin, "endless", 150, texts))
    while len(texts) < 10:
        await asyncio.sleep(0.005)
    await load(admin, "later", "one")
    assert not beside.done()
    assert await beside == alone
    loaded, cached = await logprobs(admin, "later")
    assert loaded == of_start != of_model
    assert cached == 0
    assert (await logprobs(admin, "endless"))[0] == of_model
    await unload(admin, "later")
    assert (await admin.post(CHAT, json=body("later"))).json()["error"]["code"] == "model_not_found"
    await until_engine_holds(running, 1)


async def test_a_replaced_adapter_is_never_answered_for_by_the_prefix_cache_also_if_its_folder_is_the_same(
    running: Running, admin: httpx.AsyncClient
) -> None:
    (shelf,) = running.model.adapters.folders
    shutil.copytree(shelf / "one", shelf / "changing")
    await load(admin, "changing", "changing")
    await load(admin, "two", "two")
    before, _ = await logprobs(admin, "changing")
    again, cached = await logprobs(admin, "changing")
    assert cached > 0
    whole = await stream(admin, "changing", 100, [])
    texts: list[str] = []
    still = asyncio.create_task(stream(admin, "changing", 100, texts))
    while len(texts) < 10:
        await asyncio.sleep(0.005)
    shutil.copytree(shelf / "two", shelf / "changing", dirs_exist_ok=True)
    await load(admin, "changing", "changing", in_place=True)
    assert not still.done()
    after, cached = await logprobs(admin, "changing")
    assert cached == 0
    assert after == (await logprobs(admin, "two"))[0] != before == again
    # What had begun goes on with the weights that it began with.
    assert await still == whole
    await unload(admin, "changing")
    # Under a name that the engine knows, from a folder that it knows.
    shutil.copytree(shelf / "one", shelf / "changing", dirs_exist_ok=True)
    await load(admin, "changing", "changing")
    assert (await logprobs(admin, "changing"))[0] == before
    for name in ("changing", "two"):
        await unload(admin, name)
    await until_engine_holds(running, 1)
