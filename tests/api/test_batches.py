"""``/v1/batches``, with OpenAI's own client."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from fastapi import FastAPI
from openai.types import Batch

from llava_api.limits.keys import KeyRing
from llava_api.server.batch_requests import start_batches
from tests.api.test_chat import CHAT, RED
from tests.support.openai_schemas import ValidatingTransport
from tests.support.scripted_engine import ScriptedEngine

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def settings_made(tmp_path: Any) -> dict[str, Any]:
    return {"data_dir": str(tmp_path / "data"), "min_free_disk_bytes": 0}


@pytest_asyncio.fixture
async def running(app: FastAPI) -> None:
    services = app.state.services
    await start_batches(services, KeyRing(services.settings), app.state.lifecycle)


@pytest_asyncio.fixture
async def api(app: FastAPI, running: None) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = ValidatingTransport(httpx.ASGITransport(app))
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    async with openai.AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0) as client:
        yield client


def line(custom_id: str, body: dict[str, Any] = HELLO, url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


async def upload(api: openai.AsyncOpenAI, lines: Sequence[Any]) -> str:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    made = await api.files.create(file=("requests.jsonl", text.encode()), purpose="batch")
    return made.id


async def create(api: openai.AsyncOpenAI, lines: Sequence[Any], **more: Any) -> Batch:
    arguments = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": await upload(api, lines)}
    return await api.batches.create(**(arguments | more))


async def until(api: openai.AsyncOpenAI, batch: Batch, *statuses: str) -> Batch:
    async with asyncio.timeout(20):
        while batch.status not in statuses:
            await asyncio.sleep(0.01)
            batch = await api.batches.retrieve(batch.id)
    return batch


async def content(api: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(text) for text in (await api.files.content(file_id)).text.splitlines()]


async def test_a_batch_from_its_file_to_its_output(api: openai.AsyncOpenAI) -> None:
    made = await create(api, [line(str(number)) for number in range(30)], metadata={"night": "1"})
    assert (made.status, made.metadata, made.completion_window) == ("validating", {"night": "1"}, "24h")
    done = await until(api, made, "completed")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    assert (done.model, done.error_file_id, done.errors) == ("tiny", None, None)
    assert done.usage is not None
    assert done.usage.output_tokens == 90
    assert done.completed_at is not None
    output = await content(api, done.output_file_id)
    assert {each["custom_id"] for each in output} == set(map(str, range(30)))
    assert len({each["id"] for each in output}) == len(output) == 30
    assert all(each["id"].startswith("batch_req_") and each["error"] is None for each in output)
    assert {each["response"]["status_code"] for each in output} == {200}
    assert all(each["response"]["request_id"].startswith("req_") for each in output)
    assert {each["response"]["body"]["choices"][0]["message"]["content"] for each in output} == {"A red circle."}
    file = await api.files.retrieve(str(done.output_file_id))
    assert file.purpose == "batch_output"


async def test_the_bodies_are_those_of_requests(api: openai.AsyncOpenAI, client: httpx.AsyncClient) -> None:
    """Of every endpoint, except for ids and times."""
    asked = {
        CHAT: HELLO | {"logprobs": True, "n": 2, "temperature": 0},
        "/v1/responses": {"model": "tiny", "input": "Hello"},
        "/v1/completions": {"model": "tiny", "prompt": "Hello"},
    }
    for url, body in asked.items():
        done = await until(api, await create(api, [line("a", body, url)], endpoint=url), "completed")
        (only,) = await content(api, done.output_file_id)
        got, wanted = only["response"]["body"], (await client.post(url, json=body)).json()
        assert got["id"].rpartition("_")[2] != wanted["id"].rpartition("_")[2]
        assert list(got) == list(wanted)
        assert got["usage"] == wanted["usage"]
        assert done.usage is not None
        assert done.usage.total_tokens == got["usage"]["total_tokens"]


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


async def test_refused_requests_go_to_the_error_file(api: openai.AsyncOpenAI) -> None:
    bodies = {
        "good": HELLO,
        "model": HELLO | {"model": "another"},
        "messages": {"model": "tiny"},
        "stream": HELLO | {"stream": True},
        "deep": HELLO | {"tools": nested(500)},
    }
    done = await until(api, await create(api, [line(name, body) for name, body in bodies.items()]), "completed")
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 5, "completed": 1, "failed": 4}
    (good,) = await content(api, done.output_file_id)
    assert good["custom_id"] == "good"
    refused = {each["custom_id"]: each for each in await content(api, done.error_file_id)}
    answers = {name: (each["response"]["status_code"], each["error"]) for name, each in refused.items()}
    assert answers == {"model": (404, None), "messages": (400, None), "stream": (400, None), "deep": (400, None)}
    params = {name: each["response"]["body"]["error"]["param"] for name, each in refused.items()}
    assert params == {"model": "model", "messages": "messages", "stream": "stream", "deep": None}


WRONG_LINES = {
    "no JSON": "invalid_json_line",
    "[1]": "invalid_json_line",
    json.dumps(line("a")): "duplicate_custom_id",
    json.dumps(line("b", url="/v1/responses")): "url_mismatch",
    json.dumps(line("c") | {"method": "GET"}): "invalid_method",
    json.dumps(line("")): "invalid_custom_id",
    json.dumps({"custom_id": "d", "method": "POST", "url": CHAT}): "missing_required_parameter",
    json.dumps(line("e") | {"body": []}): "invalid_type",
    json.dumps(line("g", HELLO | {"stop": [[]] * 30_000})): "too_many_parts",
    json.dumps(line("f", HELLO | {"user": "x" * 300_000})): "line_too_long",
}


async def test_a_wrong_file_fails_with_its_lines_numbers(api: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    made = await create(api, [line("a"), "", *WRONG_LINES])
    failed = await until(api, made, "failed")
    assert failed.errors is not None
    assert failed.errors.data is not None
    found = [(error.line, error.code) for error in failed.errors.data]
    assert found == list(enumerate(WRONG_LINES.values(), start=3))
    assert (failed.output_file_id, failed.error_file_id, engine.requests) == (None, None, [])


@pytest.mark.parametrize(("lines", "code"), [([], "empty_file"), ([line(str(n)) for n in range(4)], "too_many_tasks")])
async def test_too_few_and_too_many_requests(
    app: FastAPI, api: openai.AsyncOpenAI, lines: list[Any], code: str
) -> None:
    app.state.services.settings.max_batch_requests = 3
    failed = await until(api, await create(api, ["", *lines]), "failed")
    assert failed.errors is not None
    assert [(error.line, error.code) for error in failed.errors.data or ()] == [(None, code)]


async def test_what_a_batch_cannot_be_made_of(api: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no file of that id"):
        await api.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    for wrong in ({"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}, {"metadata": {"a" * 65: ""}}):
        with pytest.raises(openai.BadRequestError):
            await create(api, [line("a")], **wrong)
    for method in (api.batches.retrieve, api.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await method("batch_none")


async def test_lists_are_newest_first_and_in_pages(api: openai.AsyncOpenAI) -> None:
    made = [(await create(api, [line("a")])).id for _ in range(3)]
    page = await api.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (made[:0:-1], True)
    rest = await page.get_next_page()
    assert ([batch.id for batch in rest.data], rest.has_more) == (made[:1], False)


async def test_a_cancelled_batch_keeps_its_answers(api: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.pause_seconds = 0.01
    made = await create(api, [line(str(number)) for number in range(500)])
    while not (await api.batches.retrieve(made.id)).request_counts.completed:  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
    assert (await api.batches.cancel(made.id)).status in ("cancelling", "cancelled")
    ended = await until(api, made, "cancelled")
    assert ended.request_counts is not None
    assert 0 < ended.request_counts.completed < 500
    output = await content(api, ended.output_file_id)
    assert len({each["custom_id"] for each in output}) == len(output) == ended.request_counts.completed
    assert engine.unfinished == 0
    with pytest.raises(openai.ConflictError, match="status 'cancelled'"):
        await api.batches.cancel(made.id)


async def test_it_is_too_late_to_cancel_while_the_output_is_published(
    app: FastAPI, api: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, publishing, gate = app.state.services.data.files, threading.Event(), threading.Event()
    publish = files.publish_output

    def publish_later(*arguments: Any) -> None:
        publishing.set()
        gate.wait(20)
        publish(*arguments)

    monkeypatch.setattr(files, "publish_output", publish_later)
    made = await create(api, [line("a")])
    assert await asyncio.to_thread(publishing.wait, 20)
    with pytest.raises(openai.ConflictError, match="status 'finalizing'"):
        await api.batches.cancel(made.id)
    gate.set()
    await until(api, made, "completed")


async def test_what_is_not_done_in_time_is_named(app: FastAPI, api: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.pause_seconds = 0.01
    made = await create(api, [line(str(number)) for number in range(700)])
    while not (await api.batches.retrieve(made.id)).request_counts.completed:  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
    job = app.state.services.batches.jobs[made.id]
    job.clock = lambda: made.created_at + 24 * 3600
    ended = await until(api, made, "expired")
    counts = ended.request_counts
    assert counts is not None
    assert counts.completed > 0
    assert counts.completed + counts.failed == counts.total == 700
    errors = await content(api, ended.error_file_id)
    assert {(each["error"]["code"], each["response"]) for each in errors} == {("batch_expired", None)}
    named = {each["custom_id"] for each in (*errors, *await content(api, ended.output_file_id))}
    assert named == set(map(str, range(700)))


async def test_the_output_expires_as_asked(api: openai.AsyncOpenAI) -> None:
    asked: Any = {"anchor": "created_at", "seconds": 3600}
    done = await until(api, await create(api, [line("a")], output_expires_after=asked), "completed")
    file = await api.files.retrieve(str(done.output_file_id))
    assert file.expires_at == file.created_at + 3600


async def test_images_in_a_batch(api: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    """As data, and by the id of a file; one that is not allowed is a refusal of its request."""
    file = await api.files.create(file=("red.png", base64.b64decode(RED.partition(",")[2])), purpose="vision")
    images: dict[str, dict[str, Any]] = {
        "data": {"type": "image_url", "image_url": {"url": RED}},
        "file": {"type": "file", "file": {"file_id": file.id}},
        "inside": {"type": "image_url", "image_url": {"url": "http://127.0.0.1/secret.png"}},
    }
    lines = [line(name, HELLO | {"messages": [{"role": "user", "content": [image]}]}) for name, image in images.items()]
    done = await until(api, await create(api, lines), "completed")
    output = await content(api, done.output_file_id)
    assert {each["custom_id"] for each in output} == {"data", "file"}
    assert [len(request.images) for request in engine.requests] == [1, 1]
    (refused,) = await content(api, done.error_file_id)
    assert refused["response"]["body"]["error"]["code"] == "image_url_not_allowed"
