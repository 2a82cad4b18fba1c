"""Limits of a minute as callers meet them: two keys, of which one asks for too much and the other notices nothing."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from llava_api.limits.account import RateLimiter
from llava_api.limits.table import CallerLimits
from llava_api.limits.windows import Windows
from tests.api.test_chat import BLUE, CHAT, RED, image_message, text_body
from tests.api.test_queue import ANNE, BEN, until
from tests.api.test_tools import TOOLS
from tests.support.at_rest import held
from tests.support.clock import Clock
from tests.support.endpoints import EXAMPLE_BODIES, GENERATING
from tests.support.running_server import post, serve_app
from tests.support.scripted_engine import ScriptedEngine

REQUESTS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
TOKENS = ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")
EXPLAIN = "/v1/explain"
IN_OPENAIS_SHAPE = {path: EXAMPLE_BODIES[path] for path in (CHAT, "/v1/responses", "/v1/completions", EXPLAIN)}


def two_keys(folder: Path, limits: str) -> dict[str, Any]:
    """Settings with Anne's and Ben's keys, and a file of limits."""
    keys = [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]
    (folder / "limits.toml").write_text(limits)
    return {
        "api_key": keys,
        "key_limits_file": str(folder / "limits.toml"),
        "cors_allow_origins": ["https://chat.example.com"],
    }


@pytest.fixture
def limits() -> str:
    """The file of limits; overridden by tests."""
    return ""


@pytest.fixture
def settings_made(tmp_path: Path, limits: str) -> dict[str, Any]:
    return two_keys(tmp_path, limits)


def of(reply: httpx.Response, names: tuple[str, ...]) -> list[str | None]:
    return [reply.headers.get(name) for name in names]


class TestRequests:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nrequests_per_minute = 4\n"

    async def test_one_too_many_is_a_429_and_the_other_key_is_not_touched(
        self, client: httpx.AsyncClient, limiter: RateLimiter, clock: Clock, engine: ScriptedEngine
    ) -> None:
        replies = []
        for path, body in IN_OPENAIS_SHAPE.items():
            replies.append(await client.post(path, json=body, headers=ANNE))
            clock.now += 4
        assert [reply.status_code for reply in replies] == [200] * 4
        assert [of(reply, REQUESTS) for reply in replies] == [
            ["4", "3", "1m0s"],
            ["4", "2", "56s"],
            ["4", "1", "52s"],
            ["4", "0", "48s"],
        ]
        assert all(of(reply, TOKENS) == [None] * 3 for reply in replies)
        asked = len(engine.requests)
        clock.now += 0.25
        for path, body in IN_OPENAIS_SHAPE.items():
            # Of whatever body: it is not read.
            refused = await client.post(path, content=b"{" * 290_000, headers=ANNE)
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
            assert "limit is 4 in a minute, 4 are used. Try again in 44 s." in error["message"]
            assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("44", "43750")
            assert of(refused, REQUESTS) == ["4", "0", "43.75s"]
            free = await client.post(path, json=body, headers=BEN)
            assert (free.status_code, of(free, REQUESTS)) == (200, [None] * 3)
        assert len(engine.requests) == asked + 3
        clock.now += 43.75
        assert (await client.post(CHAT, json=text_body(), headers=ANNE)).status_code == 200

    async def test_a_changed_limit_counts_what_was_sent_before(
        self, client: httpx.AsyncClient, limiter: RateLimiter, tmp_path: Path
    ) -> None:
        async def statuses(count: int) -> list[int]:
            return [(await client.post(CHAT, json=text_body(), headers=ANNE)).status_code for _ in range(count)]

        assert await statuses(4) == [200] * 4
        (tmp_path / "limits.toml").write_text("[anne]\nrequests_per_minute = 5\n")
        limiter.table.refresh()
        assert await statuses(2) == [200, 429]
        (tmp_path / "limits.toml").write_text("[anne]\nrequests_per_minute = 2\n")
        limiter.table.refresh()
        assert await statuses(1) == [429]

    async def test_every_answer_says_what_is_left(
        self, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine
    ) -> None:
        limiter.table.default = limiter.table.limits_of("key anne")
        bad = [
            {"content": b"{"},
            {"json": text_body(model="another")},
            {"json": {"model": "tiny", "messages": [image_message("?", "data:image/png;base64,AAAA")]}},
            {"content": b" " * 300_001},
        ]
        statuses = []
        for number, wrong in enumerate(bad):
            reply = await client.post(CHAT, headers=ANNE, **wrong)
            statuses.append(reply.status_code)
            assert of(reply, REQUESTS)[:2] == ["4", str(3 - number)]
        assert statuses == [400, 404, 400, 413]
        # And so do streams, and failures.
        origin = {"origin": "https://chat.example.com"}
        streamed = await client.post(CHAT, json=text_body(stream=True), headers={**BEN, **origin})
        assert of(streamed, REQUESTS)[:2] == ["4", "3"]
        exposed = streamed.headers["access-control-expose-headers"].split(", ")
        assert set(exposed) >= {*REQUESTS, *TOKENS, "retry-after", "retry-after-ms"}
        engine.fail_at = 0
        failed = await client.post(CHAT, json=text_body(), headers=BEN)
        assert (failed.status_code, of(failed, REQUESTS)[1]) == (500, "2")
        # Health and the list of models are no work, and are not counted.
        for path in ("/v1/models", "/health"):
            assert of(await client.get(path, headers=BEN), REQUESTS) == [None] * 3

    async def test_the_window_really_passes_and_the_openai_client_comes_again_by_itself(
        self, app: FastAPI, limiter: RateLimiter
    ) -> None:
        limiter.windows = Windows(seconds=1)
        transport = httpx.ASGITransport(app)
        key = ANNE["authorization"].removeprefix("Bearer ")
        async with (
            asyncio.timeout(20),
            httpx.AsyncClient(transport=transport, base_url="http://test") as plain,
        ):
            statuses = [(await plain.post(CHAT, json=text_body(), headers=ANNE)).status_code for _ in range(5)]
            assert statuses == [200] * 4 + [429]
            refused = await plain.post(CHAT, json=text_body(), headers=ANNE)
            await asyncio.sleep(int(refused.headers["retry-after-ms"]) / 1000)
            assert (await plain.post(CHAT, json=text_body(), headers=ANNE)).status_code == 200
            calls = []

            async def count(request: httpx.Request) -> None:
                calls.append(request)

            plain.event_hooks["request"].append(count)
            async with AsyncOpenAI(api_key=key, base_url="http://test/v1", http_client=plain) as openai:
                for _ in range(6):
                    made = await openai.chat.completions.create(**text_body())
                    assert made.choices[0].message.content == "A red circle."
            assert len(calls) > 6


class TestTokens:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\ntokens_per_minute = 200\n[ben]\ntokens_per_minute = 200\n"

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", GENERATING)
    async def test_prompt_and_answer_are_counted_as_the_usage_says(
        self, client: httpx.AsyncClient, limiter: RateLimiter, path: str, stream: bool
    ) -> None:
        whole = await client.post(path, json=EXAMPLE_BODIES[path], headers=BEN)
        usage = whole.json()["usage"]
        prompt = usage.get("prompt_tokens") or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
        total = prompt + (usage.get("completion_tokens") or usage["output_tokens"])
        assert of(whole, TOKENS) == ["200", str(200 - total), "1m0s"]
        reply = await client.post(path, json={**EXAMPLE_BODIES[path], "stream": stream}, headers=ANNE)
        # At the start of a stream its answer is not known, or not all of it.
        most = 200 - (prompt if stream else total)
        assert 200 - total <= int(of(reply, TOKENS)[1]) <= most
        state = await limiter.windows.state("tokens", "key anne", 200)
        assert state.remaining == 200 - total

    async def test_a_debt_is_waited_for_before_the_body_is_read(
        self, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine, clock: Clock
    ) -> None:
        engine.say(*["a"] * 500)
        assert (await client.post(CHAT, json=text_body(), headers=ANNE)).status_code == 200
        refused = await client.post(CHAT, content=b"{", headers=ANNE)
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
        assert of(refused, TOKENS)[:2] == ["200", "0"]
        assert 0 < int(refused.headers["retry-after"]) <= 60
        # What takes no tokens, and who owes none, may go on.
        assert (await client.post(EXPLAIN, json=text_body(), headers=ANNE)).status_code == 200
        assert (await client.post(CHAT, json=text_body(), headers=BEN)).status_code == 200
        clock.now += 60
        assert (await client.post(CHAT, json=text_body(), headers=ANNE)).status_code == 200

    async def test_an_answer_that_was_cut_off_is_counted_as_far_as_it_came(
        self, app: FastAPI, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine
    ) -> None:
        engine.say(*["a"] * 1000)
        engine.pause_seconds = 0.01
        transport = httpx.ASGITransport(app)
        body = text_body(stream=True)
        scope_client = httpx.AsyncClient(transport=transport, base_url="http://test")
        # ASGITransport waits for the whole answer: so the caller's going is the cancelling of the call.
        calling = asyncio.create_task(scope_client.post(CHAT, json=body, headers=ANNE))
        await until(lambda: engine.deltas >= 5)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await until(lambda: engine.unfinished == 0)
        await scope_client.aclose()
        prompt = (await client.post(EXPLAIN, json=text_body(), headers=ANNE)).json()["prompt_tokens"]
        state = await limiter.windows.state("tokens", "key anne", 200)
        assert 0 < 200 - prompt - state.remaining < 60
        assert limiter.at_once == {}

    async def test_a_prompt_beyond_the_whole_minute_is_told_that_it_never_passes(
        self, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine
    ) -> None:
        long = " circle" * 20
        for path, body in {
            CHAT: text_body(long * 2),
            "/v1/completions": {"model": "tiny", "prompt": [long, long]},
            "/v1/responses": {"model": "tiny", "input": long * 2},
        }.items():
            reply = await client.post(path, json=body, headers=ANNE)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (400, "request_exceeds_rate_limit"), reply.text
            assert "can never pass" in error["message"]
            assert "retry-after" not in reply.headers
            # It took nothing.
            assert of(reply, TOKENS)[1] == "200"
        assert engine.requests == []

    async def test_images_are_not_decoded_for_a_prompt_that_must_wait(
        self, app: FastAPI, client: httpx.AsyncClient, limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded = []
        images = app.state.services.preparer.images
        render = images.render_data
        monkeypatch.setattr(images, "render_data", lambda image: decoded.append(image) or render(image))
        bodies = [{"model": "tiny", "messages": [image_message("What is it?", image)]} for image in (RED, BLUE)]
        tokens = (await client.post(EXPLAIN, json=bodies[0], headers=BEN)).json()["prompt_tokens"]
        decoded.clear()
        images.cache.images.clear()
        limiter.table.value = {"key anne": CallerLimits(tokens_per_minute=2 * tokens - 1)}
        for body, status in zip(bodies, (200, 429), strict=True):
            assert (await client.post(CHAT, json=body, headers=ANNE)).status_code == status
        assert len(decoded) == 1


class TestTokensOfCalls:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\ntokens_per_minute = 10000\n"

    async def test_a_stream_left_before_its_first_chunk_is_counted_as_far_as_it_came(
        self, app: FastAPI, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine
    ) -> None:
        # The start of a call, of which nothing is sent until it is known for one.
        engine.say(' {"', "na", "me", '": "', *["l"] * 1000)
        engine.pause_seconds, engine.abort_turns = 0.02, 5
        body = text_body(tools=TOOLS)
        async with serve_app(app) as server:
            connection = await server.connect()
            await connection.send(post(CHAT, {**body, "stream": True}, f"Authorization: {ANNE['authorization']}"))
            await until(lambda: engine.deltas == 3)
            await connection.leave("RST")
            await until(lambda: held(app) == {})
            prompt = (await client.post(EXPLAIN, json=body, headers=ANNE)).json()["prompt_tokens"]
            state = limiter.windows.state
            async with asyncio.timeout(5):
                while (await state("tokens", "key anne", 10_000)).remaining != 10_000 - prompt - engine.deltas:
                    await asyncio.sleep(0.01)


class TestImages:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nimages_per_minute = 3\n"

    async def test_images_are_counted_before_one_is_looked_at(
        self, client: httpx.AsyncClient, limiter: RateLimiter, clock: Clock
    ) -> None:
        def body(*urls: str) -> dict[str, Any]:
            return {"model": "tiny", "messages": [image_message("?", *urls)]}

        assert (await client.post(CHAT, json=body(RED, BLUE), headers=ANNE)).status_code == 200
        # Two more are too many now, be they broken or nowhere; explain counts them as well.
        for path in (CHAT, EXPLAIN):
            refused = await client.post(path, json=body("https://nowhere.invalid/a", "data:,"), headers=ANNE)
            error = refused.json()["error"]
            assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
            assert "3 in a minute, 2 are used, and this request has 2" in error["message"]
        assert (await client.post(EXPLAIN, json=body(RED), headers=ANNE)).status_code == 200
        assert (await client.post(CHAT, json=text_body(), headers=ANNE)).status_code == 200
        never = await client.post(CHAT, json=body(*[RED] * 4), headers=ANNE)
        assert (never.status_code, never.json()["error"]["code"]) == (400, "request_exceeds_rate_limit")
        assert (await client.post(CHAT, json=body(*[RED] * 4), headers=BEN)).status_code == 200
        clock.now += 60
        assert (await client.post(CHAT, json=body(RED, RED, RED), headers=ANNE)).status_code == 200
