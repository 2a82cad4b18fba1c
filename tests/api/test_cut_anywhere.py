"""A request that is cut after any number of the event loop's turns leaves nothing behind and harms no other.

Cut by its caller, who leaves, or by a cancellation of its task, which is what uvicorn does at the end of a shutdown
that took too long. Threads are replaced, so that each turn of the loop is the same in every run.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import product
from typing import Any, Literal, get_args

import pytest
from fastapi import FastAPI
from starlette.types import Message, Scope

from llava_api.images.fetch import Resolve
from llava_api.server.services import Services
from tests.api.test_chat import CHAT, RED, image_message
from tests.api.test_structured_output import form
from tests.support.at_rest import settle
from tests.support.scripted_engine import ScriptedEngine
from tests.support.web import Web

Cut = Literal["caller leaves", "task cancelled", "task cancelled twice", "leaves, then cancelled", "time is up"]
TWICE: dict[Cut, tuple[Cut, Cut]] = {
    "task cancelled twice": ("task cancelled", "task cancelled"),
    "leaves, then cancelled": ("caller leaves", "task cancelled"),
}
MOST_TURNS = 3000


class InPlace(Executor):
    """Work is done at once."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **more: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **more))
        except Exception as error:
            future.set_exception(error)
        return future


def advance_the_clock() -> None:
    """Of the running loop, beyond every deadline."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + 1000  # type: ignore[method-assign]


class Asked:
    """A request to the app, without a socket between."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.parts = [content[:50], content[50:]]
        self.gone = asyncio.Event()
        self.sent: list[Message] = []
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-length", str(len(content)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        if self.parts and not self.gone.is_set():
            part = self.parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)

    def cut(self, how: Cut) -> None:
        if how == "caller leaves":
            self.gone.set()
        elif how == "task cancelled":
            self.task.cancel()
        else:
            advance_the_clock()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings(image_fetch_timeout_seconds=30, image_cache_bytes=0, max_running_answers=1)


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


@pytest.fixture
def prepared_app(app: FastAPI, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    services: Services = app.state.services
    for threads in (services.preparer.images.decoding, services.preparer.images.measuring):
        threads.close()
        threads.executor = InPlace()  # type: ignore[assignment]

    async def ask(grammar: str) -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return ""

    monkeypatch.setattr(services.preparer.grammars, "ask", ask)
    return app


def chat_body(url: str, stream: bool) -> dict[str, Any]:
    schema = form({"type": "object", "properties": {"a": {"type": "integer"}}})
    return {
        "model": "tiny",
        "messages": [image_message("What?", url)],
        "stream": stream,
        "response_format": schema,
    }


def response_body(url: str, stream: bool) -> dict[str, Any]:
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]
    return {"model": "tiny", "input": [{"role": "user", "content": content}], "stream": stream}


def completion_body(url: str, stream: bool) -> dict[str, Any]:
    return {"model": "tiny", "prompt": ["one", "two"], "stream": stream}


@pytest.mark.parametrize("how", get_args(Cut))
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in company"])
@pytest.mark.parametrize(
    ("path", "make", "where"),
    [
        (CHAT, chat_body, "data"),
        (CHAT, chat_body, "web"),
        ("/v1/responses", response_body, "data"),
        ("/v1/completions", completion_body, "data"),
    ],
    ids=["chat", "chat with a fetched picture", "responses", "completions"],
)
async def test_nothing_is_left_behind(
    prepared_app: FastAPI,
    engine: ScriptedEngine,
    web: Web,
    path: str,
    make: Callable[[str, bool], dict[str, Any]],
    where: str,
    alone: bool,
    stream: bool,
    how: Cut,
) -> None:
    app = prepared_app
    engine.abort_turns = 4
    services: Services = app.state.services
    body = make(RED if where == "data" else web.host.url("/good.png"), stream)
    tasks = asyncio.all_tasks()
    first, second = TWICE.get(how, (how, None))
    between = range(1, 7) if second else range(1)
    for turns, more_turns in product(range(MOST_TURNS), between):
        services.preparer.grammars.known.clear()
        asked = Asked(app, path, body)
        # Of another, who wants the same at the same time.
        other = None if alone else Asked(app, path, {**body, "stream": not stream})
        for _ in range(turns):
            await asyncio.sleep(0)
        ended_before = asked.task.done()
        asked.cut(first)
        if second:
            for _ in range(more_turns):
                await asyncio.sleep(0)
            asked.cut(second)
        async with asyncio.timeout(5):
            await asyncio.gather(asked.task, return_exceptions=True)
            if other is not None:
                await other.task
                # His time is up too.
                assert other.status == 200 or how == "time is up", turns
                assert b"circle" in other.body or how == "time is up", turns
        await web.settle()
        await settle(app, tasks | set(web.host.conversations))
        if ended_before:
            break
    assert ended_before, "never ended by itself"
    assert turns > 20
    assert services.preparer.images.cache.held_bytes == 0
