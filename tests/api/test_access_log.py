"""One line a request: what it says, what it never says, and that no client can write lines of its own."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from llava_api.images.fetch import Resolve
from llava_api.telemetry.log_lines import FIELDS, HumanLines, JsonLines
from tests.api.test_chat import CHAT, RED, image_message, text_body
from tests.support.endpoints import PROBES
from tests.support.metrics_page import read_page
from tests.support.running_server import post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until
from tests.support.web import Web

KEY = "sk-llava-for-anne-0123456789"
ANNE = {"authorization": f"Bearer {KEY}"}


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def fields(self) -> list[dict[str, Any]]:
        return [dict(vars(record)[FIELDS]) for record in self.records if record.name == "llava_api.access"]

    def human(self) -> list[str]:
        return [HumanLines().format(record) for record in self.records]

    def json(self) -> list[str]:
        return [JsonLines().format(record) for record in self.records]


@pytest.fixture
def lines() -> Iterator[Lines]:
    ours = logging.getLogger("llava_api")
    handler, level, propagate = Lines(), ours.level, ours.propagate
    ours.addHandler(handler)
    ours.setLevel("INFO")
    ours.propagate = False
    yield handler
    ours.removeHandler(handler)
    ours.setLevel(level)
    ours.propagate = propagate


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings(api_key=[f"anne={KEY}"])


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_says_it_all(client: httpx.AsyncClient, lines: Lines, stream: bool) -> None:
    body = {"model": "tiny", "messages": [image_message("What is this?", RED)], "stream": stream}
    reply = await client.post(CHAT, json=body, headers=ANNE)
    [fields] = lines.fields()
    times = {name: fields.pop(name) for name in ("queue_ms", "ttft_ms", "total_ms")}
    assert 0 <= times["queue_ms"] <= times["ttft_ms"] <= times["total_ms"]
    prompt_tokens = fields.pop("prompt_tokens")
    assert prompt_tokens > 36
    assert fields == {
        "request_id": reply.headers["x-request-id"],
        "key": "anne",
        "client": "127.0.0.1",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "outcome": "ok",
        "code": None,
        "model": "tiny",
        "stream": stream or None,
        "images": 1,
        "image_tokens": 36,
        "completion_tokens": 3,
        "finish_reason": "stop",
    }
    [line] = lines.human()
    assert " key=anne client=127.0.0.1 method=POST route=/v1/chat/completions status=200 outcome=ok " in line
    read = json.loads(lines.json()[0])
    assert (read["level"], read["logger"], read["message"]) == ("info", "llava_api.access", "request")
    assert read["time"].endswith("Z")
    assert read["prompt_tokens"] == prompt_tokens


async def test_how_a_request_can_end(client: httpx.AsyncClient, lines: Lines, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json=text_body(temperature=-9), headers=ANNE)
    await client.post(CHAT, json=text_body())
    await client.get("/nowhere", headers=ANNE)
    engine.fail_at = 0
    await client.post(CHAT, json=text_body(), headers=ANNE)
    engine.fail_at = 1
    await client.post(CHAT, json=text_body(stream=True), headers=ANNE)
    ends = [(line["status"], line["outcome"], line["code"], line["key"]) for line in lines.fields()]
    assert ends == [
        (400, "refused", None, "anne"),
        (401, "refused", "invalid_api_key", "-"),
        (404, "refused", "not_found", "anne"),
        (500, "failed", "engine_failed", "anne"),
        (200, "failed", "engine_failed", "anne"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unforeseen_error(
    client: httpx.AsyncClient, lines: Lines, engine: ScriptedEngine, stream: bool
) -> None:
    engine.other_choices = {0: (" A",)}
    await client.post(CHAT, json=text_body(stream=stream), headers=ANNE)
    [fields] = lines.fields()
    assert (fields["outcome"], fields["code"]) == ("failed", "internal_error")
    assert fields["status"] == (200 if stream else 500)


async def test_machines_that_look_in_leave_no_line(client: httpx.AsyncClient, lines: Lines) -> None:
    for path in PROBES:
        assert (await client.get(path, headers=ANNE)).status_code == 200
    assert lines.fields() == []
    logging.getLogger("llava_api").setLevel("DEBUG")
    await client.get("/health")
    assert [line["route"] for line in lines.fields()] == ["/health"]


async def test_what_is_secret_stays_so(client: httpx.AsyncClient, lines: Lines, web: Web) -> None:
    address = web.host.url("/good.png?token=hidden-in-url")
    question = image_message("My secret question", address, RED)
    await client.post(CHAT, json={"model": "tiny", "messages": [question]}, headers=ANNE)
    await client.post(CHAT, json={"model": "tiny", "messages": [question], "stream": True}, headers=ANNE)
    await client.post("/v1/completions", json={"model": "tiny", "prompt": "My secret question"}, headers=ANNE)
    await client.post(f"{CHAT}?api_key={KEY}", json=text_body("My secret question", temperature=-9))
    bad = image_message("My secret question", web.host.url("/status/404?hidden-in-url"))
    await client.post(CHAT, json={"model": "tiny", "messages": [bad]}, headers=ANNE)
    written = "\n".join([*lines.human(), *lines.json()])
    assert len(lines.fields()) == 5
    for secret in ("secret", "hidden-in-url", "pictures.test", KEY, RED[30:60], "circle"):
        assert secret not in written, secret


class TestPrompts:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"log_prompts": True}

    async def test_a_setting_adds_prompts_and_no_image(self, client: httpx.AsyncClient, lines: Lines) -> None:
        question = image_message("What\nis this?", RED)
        await client.post(CHAT, json={"model": "tiny", "messages": [question]})
        await client.post("/v1/completions", json={"model": "tiny", "prompt": ["One", "Two"]})
        chat, plain = lines.fields()
        assert chat["prompt"].endswith("USER: <image>\nWhat\nis this? ASSISTANT:")
        assert plain["prompt"] == "One\n\nTwo"
        assert all("\n" not in line for line in [*lines.human(), *lines.json()])
        assert RED[30:60] not in "".join(lines.human())


LINE_ENDS = ("\n", "\r", "\x0b", "\x0c", "\x1b", "\x85", "\u2028", "\u202e", "\x00", "\x7f", "\x9b")


async def test_nobody_writes_lines_of_his_own(client: httpx.AsyncClient, lines: Lines) -> None:
    for letter in LINE_ENDS:
        model = f"x{letter}llava-api: status=200 outcome=ok key=ben"
        await client.post(CHAT, json={**text_body(), "model": model}, headers=ANNE)
        await client.get(f"/{quote(f'x{letter} outcome=ok')}", headers=ANNE)
    await client.post(CHAT, json={**text_body(), "model": "m" * 100_000}, headers=ANNE)
    await client.get("/" + "p" * 50_000, headers=ANNE)
    assert len(lines.fields()) == 2 * len(LINE_ENDS) + 2
    for human, made in zip(lines.human(), lines.json(), strict=True):
        for line in (human, made):
            assert line.isascii()
            assert line.isprintable()
            assert len(line) < 1000
        assert json.loads(made)["outcome"] == "refused"
        # What is quoted is one value.
        outside = re.sub(r'"(\\.|[^"\\])*"', "", human)
        assert re.findall(r"outcome=(\w+)", outside) == ["refused"]


async def test_an_unforeseen_errors_path_is_escaped(
    client: httpx.AsyncClient, lines: Lines, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.services, "preparer", None)
    await client.get("/v1/models/%0dforged%1b[31m", headers=ANNE)
    complaints = [record.getMessage() for record in lines.records if record.name != "llava_api.access"]
    assert len(complaints) == 1
    assert complaints[0].isprintable()


async def test_who_ended_it_is_told_apart(app: FastAPI, engine: ScriptedEngine, lines: Lines) -> None:
    engine.pause_seconds = 0.05
    engine.say(*[" a"] * 200)
    async with serve_app(app) as running:
        for number, stream in enumerate((True, False)):
            connection = await running.connect()
            await connection.send(post(CHAT, text_body(stream=stream), f"Authorization: Bearer {KEY}"))
            if stream:
                await connection.reader.readuntil(b"data: ")
            await until(lambda: engine.unfinished)
            await connection.close()
            await until(lambda number=number: len(lines.fields()) > number)
        connection = await running.connect()
        await connection.send(post(CHAT, text_body(stream=True), f"Authorization: Bearer {KEY}"))
        await connection.reader.readuntil(b"data: ")
        # Open streams have a second left.
        running.server.should_exit = True
        await until(lambda: len(lines.fields()) == 3)
    streamed, whole, cut = lines.fields()
    assert (streamed["status"], streamed["outcome"]) == (200, "client_gone")
    assert streamed["completion_tokens"] > 0
    assert (whole["status"], whole["outcome"]) == (499, "client_gone")
    assert (cut["status"], cut["outcome"]) == (200, "cut")
    assert engine.unfinished == 0


async def test_what_comes_after_a_good_request_is_not_its_failure(app: FastAPI, lines: Lines) -> None:
    metrics = app.state.metrics
    async with serve_app(app, count_refusal=metrics.reject) as edge:
        caller = await edge.connect()
        requests = (post(CHAT, text_body(), f"Authorization: Bearer {KEY}"), b"GARBAGE\r\n\r\n")
        assert [(await caller.ask(request)).status for request in requests] == [200, 400]
    (line,) = lines.fields()
    assert (line["outcome"], line["code"]) == ("ok", None)
    page = read_page(metrics.page("")[0].decode())
    assert page.value("llava_api_rejections_total", reason="invalid_http") == 1


@pytest.mark.parametrize(
    ("path", "route"), [("/v1/models", "/v1/models"), ("/v1/models/tiny", "/v1/models/{name:path}")]
)
async def test_head_is_told_with_its_route(client: httpx.AsyncClient, lines: Lines, path: str, route: str) -> None:
    assert (await client.head(path, headers=ANNE)).status_code == 200
    (line,) = lines.fields()
    assert (line["method"], line["route"]) == ("HEAD", route)
