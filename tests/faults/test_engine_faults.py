"""Faults of the engine and ends of the server, on ``llava-api serve`` with the real engine.

What each costs a caller and an operator stands in docs/operations.md, with a pointer to the test.
"""

import asyncio
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.metrics_page import read_page
from tests.support.serve import START_SECONDS, Server, have_ended, started_server
from tests.support.waiting import until

DETECTED_SECONDS = 5.0
"""By then every caller has heard of a loss."""
MODEL = "llava-tiny-1.5"


def client_of(server: Server, seconds: float) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.base_url.removesuffix("/v1"), timeout=seconds)


def last_line(server: Server) -> str:
    return server.terminal.splitlines()[-1]


def body(words: str, *, stream: bool, max_tokens: int, **others: Any) -> dict[str, Any]:
    message = {"role": "user", "content": words}
    asked = {"model": MODEL, "messages": [message], "stream": stream, "max_tokens": max_tokens, "temperature": 0}
    return {**asked, "ignore_eos": True, **others}


@dataclass
class Heard:
    """One answer as its caller hears it."""

    status: int = 0
    retry_after: str | None = None
    data: list[str] | None = None
    whole: dict[str, Any] | None = None
    ended: float = 0.0

    @property
    def text(self) -> str:
        if self.whole is not None:
            return str(self.whole["choices"][0]["message"]["content"])
        chunks = [json.loads(line) for line in self.data or [] if line != "[DONE]"]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", []))


async def ask(client: httpx.AsyncClient, asked: dict[str, Any], heard: Heard) -> Heard:
    async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
        heard.status = reply.status_code
        heard.retry_after = reply.headers.get("retry-after")
        if asked["stream"] and reply.status_code == 200:
            heard.data = []
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    heard.data.append(line.removeprefix("data: "))
        else:
            heard.whole = json.loads(await reply.aread())
    heard.ended = time.monotonic()
    return heard


async def until_begun(streams: list[Heard]) -> None:
    await until(lambda: all(heard.data for heard in streams), 60)


def assert_told_of_the_loss(streams: list[Heard], unary: list[Heard], since: float) -> None:
    for heard in streams:
        assert heard.data is not None
        errors = [line for line in heard.data if '"error"' in line]
        assert errors == heard.data[-1:]
        assert json.loads(errors[0])["error"]["code"] == "engine_stopped"
    for heard in unary:
        assert heard.status == 503
        assert heard.whole is not None
        assert heard.whole["error"]["code"] == "engine_stopped"
        assert int(heard.retry_after or 0) > 0
    assert max(heard.ended for heard in streams + unary) - since < DETECTED_SECONDS


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_engine_the_server_tells_everybody_and_ends(tmp_path: Path, fault: signal.Signals) -> None:
    async def lose(server: Server) -> None:
        async with client_of(server, 60) as client:
            streams, unary = [Heard() for _ in range(6)], [Heard() for _ in range(3)]
            asking = [ask(client, body("Hello", stream=True, max_tokens=1900), heard) for heard in streams]
            asking += [ask(client, body("Hello", stream=False, max_tokens=1900), heard) for heard in unary]
            tasks = [asyncio.create_task(each) for each in asking]
            await until_begun(streams)
            engine_core = server.wait_for_engine_process("EngineCore")
            since = time.monotonic()
            engine_core.send_signal(fault)
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
            assert_told_of_the_loss(streams, unary, since)
            live = 200
            while live == 200 and time.monotonic() - since < DETECTED_SECONDS:
                live = (await client.get("/health/live")).status_code
            assert live == 503

    with started_server(MODEL, tmp_path / "terminal.txt") as server:
        server.wait_for("\ncurl ")
        children = server.children()
        asyncio.run(lose(server))
        assert server.process.wait(15) == 70
        assert have_ended(children)
        assert last_line(server).startswith("llava-api: the engine was lost")


def test_a_restarted_engine_answers_what_had_not_begun_and_a_killed_server_leaves_nothing(tmp_path: Path) -> None:
    async def lose_and_go_on(server: Server) -> None:
        async with client_of(server, START_SECONDS) as client:
            alone = await ask(client, body("What is this?", stream=True, max_tokens=40), Heard())
            streams, silent = [Heard() for _ in range(2)], [Heard() for _ in range(6)]
            tasks = [asyncio.create_task(ask(client, body("Hello", stream=True, max_tokens=1900), h)) for h in streams]
            await until_begun(streams)
            # They wait inside the engine, which computes two at once.
            for number, heard in enumerate(silent):
                asked = body("What is this?", stream=number % 2 == 0, max_tokens=40)
                tasks.append(asyncio.create_task(ask(client, asked, heard)))
            while await waiting_in_the_engine(client) < len(silent):
                await asyncio.sleep(0.05)
            engine_core = server.wait_for_engine_process("EngineCore")
            since = time.monotonic()
            engine_core.kill()
            await asyncio.wait_for(asyncio.gather(*tasks[:2]), 30)
            assert_told_of_the_loss(streams, [], since)
            assert (await client.get("/health/live")).status_code == 200
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "engine_restarting")
            await asyncio.wait_for(asyncio.gather(*tasks), START_SECONDS)
            assert [heard.status for heard in silent] == [200] * 6
            assert {heard.text for heard in silent} == {alone.text}
            assert (await client.get("/health/ready")).status_code == 200

    flags = ("--restart-engine", "--max-num-seqs", "2", "--max-running-answers", "8", "--metrics", "open")
    with started_server(MODEL, tmp_path / "terminal.txt", *flags) as server:
        server.wait_for("\ncurl ")
        asyncio.run(lose_and_go_on(server))
        children = server.children()
        assert len(children) >= 2
        server.process.kill()
        server.process.wait()
        assert have_ended(children)


async def waiting_in_the_engine(client: httpx.AsyncClient) -> float:
    return read_page((await client.get("/metrics")).text).total("vllm:num_requests_waiting")


def test_with_a_tiny_kv_cache_long_streams_finish_as_if_alone_and_sigterm_lets_them(tmp_path: Path) -> None:
    words = [f"Tell me about picture number {number}." for number in range(8)]

    async def fill(server: Server) -> None:
        async with client_of(server, 300) as client:
            asked = [body(text, stream=True, max_tokens=700) for text in words]
            alone = [await ask(client, each, Heard()) for each in asked[:3]]
            together = await asyncio.gather(*(ask(client, each, Heard()) for each in asked))
            assert all((heard.data or [""])[-1] == "[DONE]" for heard in together)
            assert [heard.text for heard in together[:3]] == [heard.text for heard in alone]
            assert all(heard.text for heard in together)
            assert read_page((await client.get("/metrics")).text).total("vllm:num_preemptions_total") > 0

    async def stop(server: Server) -> None:
        async with client_of(server, 60) as client:
            streams = [Heard() for _ in range(4)]
            asking = [ask(client, body("Hello", stream=True, max_tokens=600), heard) for heard in streams]
            tasks = [asyncio.create_task(each) for each in asking]
            await until_begun(streams)
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                while (await client.get("/health/ready")).status_code == 200:
                    await asyncio.sleep(0.01)
            assert (await client.get("/health/live")).status_code == 200
            refused = await client.post("/v1/chat/completions", json=body("Hello", stream=True, max_tokens=5))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
            assert refused.headers["connection"] == "close"
            await asyncio.gather(*tasks)
            assert [(heard.data or [""])[-1] for heard in streams] == ["[DONE]"] * 4

    # 40 blocks of 32 tokens: room for 1,280 where eight answers of 700 need 5,900.
    flags = ["--metrics", "open", "--max-model-len", "1024"]
    flags += ["--engine-arg", "num_gpu_blocks_override=40", "--engine-arg", "block_size=32"]
    with started_server(MODEL, tmp_path / "terminal.txt", *flags) as server:
        server.wait_for("\ncurl ")
        children = server.children()
        asyncio.run(fill(server))
        asyncio.run(stop(server))
        assert server.process.wait(15) == 0
        assert have_ended(children)


@pytest.mark.parametrize("begun", ["nothing", "EngineCore", "Worker"])
def test_sigterm_while_the_model_loads_is_clean(tmp_path: Path, begun: str) -> None:
    """``begun`` is the process of the engine's that has just been started."""
    with started_server(MODEL, tmp_path / "terminal.txt") as server:
        server.wait_for("loading the engine")
        if begun != "nothing":
            server.wait_for_engine_process(begun)
        children = server.children()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert have_ended(children)
        assert "Traceback" not in server.terminal
