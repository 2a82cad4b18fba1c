"""Limits as callers meet them: two keys side by side, of which one asks for too much and the other notices nothing."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from PIL import Image

from llava_api.limits.keys import KeyRing, KeySources
from llava_api.limits.rate import RateLimiter
from llava_api.limits.table import CallerLimits
from llava_api.limits.windows import Windows
from llava_api.server.app import create_app
from llava_api.server.lifespan import watch_keys
from llava_api.server.services import caller_of_address
from tests.api.test_chat import BLUE, CHAT, RED, picture_message, text_body
from tests.api.test_queue import ANNE, BEN, until
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine
from tests.unit.test_windows import Clock

REQUESTS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
TOKENS = ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")
EXPLAIN = "/v1/explain"
BODIES = {
    CHAT: text_body(),
    "/v1/completions": {"model": "tiny", "prompt": "x"},
    "/v1/responses": {"model": "tiny", "input": "x"},
    EXPLAIN: text_body(),
}


@pytest.fixture
def limits() -> str:
    """The file of limits; overridden by tests."""
    return ""


@pytest.fixture
def settings_made(tmp_path: Path, limits: str) -> dict[str, Any]:
    keys = [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]
    (tmp_path / "limits.toml").write_text(limits)
    return {
        "api_key": keys,
        "key_limits_file": str(tmp_path / "limits.toml"),
        "cors_allow_origins": ["https://chat.example.com"],
    }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(app: FastAPI, clock: Clock) -> RateLimiter:
    services = app.state.services
    services.limiter = RateLimiter(services.limiter.table, Windows(clock=clock))
    found: RateLimiter = services.limiter
    return found


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
        for path, body in BODIES.items():
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
        for path, body in BODIES.items():
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

    async def test_every_answer_says_what_is_left(
        self, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine
    ) -> None:
        limiter.table.default = limiter.table.of("key anne")
        bad = [
            {"content": b"{"},
            {"json": text_body(model="another")},
            {"json": {"model": "tiny", "messages": [picture_message("?", "data:image/png;base64,AAAA")]}},
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
    @pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
    async def test_prompt_and_answer_are_counted_as_the_usage_says(
        self, client: httpx.AsyncClient, limiter: RateLimiter, path: str, stream: bool
    ) -> None:
        whole = await client.post(path, json=BODIES[path], headers=BEN)
        usage = whole.json()["usage"]
        assert of(whole, TOKENS) == ["200", str(200 - usage["total_tokens"]), "1m0s"]
        reply = await client.post(path, json={**BODIES[path], "stream": stream}, headers=ANNE)
        prompt = usage.get("prompt_tokens") or usage["input_tokens"]
        # At the start of a stream its answer is not known.
        spent = prompt if stream else usage["total_tokens"]
        assert of(reply, TOKENS)[1] == str(200 - spent)
        stand = await limiter.windows.stand("tokens", "key anne", 200)
        assert stand.remaining == 200 - usage["total_tokens"]

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
        await until(lambda: engine.unfinished == 1)
        await asyncio.sleep(0.1)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await until(lambda: engine.unfinished == 0)
        await scope_client.aclose()
        prompt = (await client.post(EXPLAIN, json=text_body(), headers=ANNE)).json()["prompt_tokens"]
        stand = await limiter.windows.stand("tokens", "key anne", 200)
        assert 0 < 200 - prompt - stand.remaining < 60
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

    async def test_pictures_are_not_decoded_for_a_prompt_that_must_wait(
        self, app: FastAPI, client: httpx.AsyncClient, limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded = []
        images = app.state.services.preparer.images
        render = images.render_data
        monkeypatch.setattr(images, "render_data", lambda image: decoded.append(image) or render(image))
        bodies = [{"model": "tiny", "messages": [picture_message("What is it?", picture)]} for picture in (RED, BLUE)]
        tokens = (await client.post(EXPLAIN, json=bodies[0], headers=BEN)).json()["prompt_tokens"]
        decoded.clear()
        images.cache.images.clear()
        limiter.table.by_caller = {"key anne": CallerLimits(tokens_per_minute=2 * tokens - 1)}
        for body, status in zip(bodies, (200, 429), strict=True):
            assert (await client.post(CHAT, json=body, headers=ANNE)).status_code == status
        assert len(decoded) == 1


class TestPictures:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nimages_per_minute = 3\n"

    async def test_pictures_are_counted_before_one_is_looked_at(
        self, client: httpx.AsyncClient, limiter: RateLimiter, clock: Clock
    ) -> None:
        def body(*urls: str) -> dict[str, Any]:
            return {"model": "tiny", "messages": [picture_message("?", *urls)]}

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


class TestAtOnce:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nmax_requests_at_once = 2\n"

    @pytest.mark.parametrize("stream", [False, True])
    async def test_no_more_than_allowed_are_in_the_works(
        self, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine, stream: bool
    ) -> None:
        engine.pause_seconds = 0.05
        held = [asyncio.create_task(client.post(CHAT, json=text_body(stream=stream), headers=ANNE)) for _ in range(2)]
        await until(lambda: engine.unfinished == 2)
        refused = await client.post(CHAT, json=text_body(), headers=ANNE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests_at_once")
        assert refused.headers["retry-after"] == "1"
        assert (await client.post(CHAT, json=text_body(), headers=BEN)).status_code == 200
        assert [reply.status_code for reply in await asyncio.gather(*held)] == [200, 200]
        assert limiter.at_once == {}
        assert (await client.post(CHAT, json=text_body(), headers=ANNE)).status_code == 200

    async def test_failures_and_refusals_give_their_places_back(
        self, client: httpx.AsyncClient, limiter: RateLimiter, engine: ScriptedEngine
    ) -> None:
        for fail_at in (0, 1, None):
            engine.fail_at = fail_at
            for body in (text_body(), text_body(stream=True), text_body(n=99), {}):
                await client.post(CHAT, json=body, headers=ANNE)
        assert limiter.at_once == {}


class TestAnswers:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nmax_tokens_per_request = 10\n"

    @pytest.mark.parametrize(
        ("path", "field"),
        [
            (CHAT, "max_tokens"),
            (CHAT, "max_completion_tokens"),
            ("/v1/completions", "max_tokens"),
            ("/v1/responses", "max_output_tokens"),
        ],
    )
    async def test_an_answer_is_no_longer_than_its_caller_may_ask_for(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, path: str, field: str
    ) -> None:
        body = BODIES[path]
        refused = await client.post(path, json={**body, field: 17}, headers=ANNE)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "max_tokens_exceeded", field)
        assert "10" in error["message"]
        assert (await client.post(path, json={**body, field: 17}, headers=BEN)).status_code == 200
        for asked in ({}, {field: None}, {field: 10}):
            assert (await client.post(path, json={**body, **asked}, headers=ANNE)).status_code == 200
            assert engine.requests[-1].max_tokens == 10
        too_many = await client.post(path, json={**body, "min_tokens": 11}, headers=ANNE)
        assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "min_tokens")


class TestWeights:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nweight = 3\n"

    async def test_turns_go_by_weight(self, app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
        app.state.services.admission.slots = 1
        engine.pause_seconds = 0.002
        served: list[str] = []

        async def ask(name: str, headers: dict[str, str]) -> None:
            assert (await client.post(CHAT, json=text_body(), headers=headers)).status_code == 200
            served.append(name)

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(ask("anne", ANNE))
                group.create_task(ask("ben", BEN))
        assert 26 <= served[:40].count("anne") <= 33


class TestChanges:
    @pytest.fixture
    def limits(self) -> str:
        return "[anne]\nmax_requests_at_once = 1\n"

    async def test_a_key_that_is_taken_away_ends_nothing_that_runs(
        self, app: FastAPI, engine: ScriptedEngine, tmp_path: Path, limiter: RateLimiter
    ) -> None:
        file = tmp_path / "keys"
        file.write_text("anne=sk-llava-for-anne-0123456789\n")
        settings = app.state.services.settings.model_copy(update={"api_key": [], "api_key_file": [str(file)]})
        keys = KeyRing(KeySources(settings))
        transport = httpx.ASGITransport(create_app(settings, keys, app.state.services))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            engine.pause_seconds = 0.05
            calling = asyncio.create_task(client.post(CHAT, json=text_body(), headers=ANNE))
            await until(lambda: engine.unfinished == 1)
            file.write_text("ben=sk-llava-for-ben-0123456789\n")
            keys.refresh()
            (tmp_path / "limits.toml").write_text("")
            limiter.table.refresh()
            assert (await client.post(CHAT, json=text_body(), headers=ANNE)).status_code == 401
            assert (await calling).status_code == 200
            assert limiter.at_once == {}

    async def test_a_changed_file_of_limits_counts_for_the_next_request(
        self, app: FastAPI, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llava_api.server.lifespan.KEYS_SECONDS", 0.01)
        limiter: RateLimiter = app.state.services.limiter
        watching = asyncio.create_task(watch_keys(KeyRing(KeySources(app.state.services.settings)), limiter))
        (tmp_path / "limits.toml").write_text("[anne]\nrequests_per_minute = 1\n")
        await until(lambda: limiter.table.of("key anne").requests_per_minute == 1)
        watching.cancel()
        replies = [await client.post(CHAT, json=text_body(), headers=ANNE) for _ in range(2)]
        assert [reply.status_code for reply in replies] == [200, 429]


class TestAnonymous:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"requests_per_minute": 2, "max_requests_at_once": 1, "tokens_per_minute": 10**6}

    async def test_each_address_is_a_caller_of_its_own(self, app: FastAPI, limiter: RateLimiter, clock: Clock) -> None:
        async def status_of(address: str) -> int:
            transport = httpx.ASGITransport(app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return (await client.post(CHAT, json={}, headers={})).status_code

        networks = ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:0:9::")
        # Of IPv6 a network of 64 bits is one caller.
        assert [await status_of(address) for address in networks] == [400, 400, 429]
        assert await status_of("2001:db8:0:1::1") == 400
        mapped = ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1")
        assert [await status_of(address) for address in mapped] == [400, 400, 429]
        assert limiter.at_once == {}

    async def test_ten_thousand_addresses_leave_nothing_behind(self, limiter: RateLimiter, clock: Clock) -> None:
        for number in range(10_000):
            allowance = limiter.allowance(f"10.0.{number // 256}.{number % 256}")
            await allowance.enter()
            await allowance.spend_prompt(10)
            allowance.owe(10)
            allowance.leave()
            await allowance.settle()
        counts = limiter.windows.own.storage
        assert len(counts.windows) == 20_000  # type: ignore[attr-defined]
        clock.now += 60
        await limiter.allowance("10.0.0.1").enter()
        assert len(counts.windows) == 1  # type: ignore[attr-defined]
        assert len(limiter.at_once) == 1


def test_whatever_a_proxy_names_is_a_caller() -> None:
    assert caller_of_address("not an address" * 100) == ("not an address" * 100)[:64]
    assert caller_of_address("fe80::1%eth0") == "fe80::/64"
    assert caller_of_address("") == ""


class TestIsolation:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        keys = [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]
        return {"api_key": keys, "isolate_caches": True}

    async def test_what_is_kept_of_one_is_not_used_for_another(
        self, app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded = []
        images = app.state.services.preparer.images
        render = images.render_data
        monkeypatch.setattr(images, "render_data", lambda image: decoded.append(image) or render(image))
        picture = data_url(Image.new("RGB", (30, 30), "green"))
        body = {"model": "tiny", "messages": [picture_message("?", picture)]}
        for headers in (ANNE, BEN, ANNE, BEN):
            assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
        assert len(decoded) == 2
        keys = [request.images[0].cache_key for request in engine.requests]
        salts = [request.cache_salt for request in engine.requests]
        assert keys[:2] == keys[2:]
        assert salts[:2] == salts[2:]
        assert len(set(keys)) == len(set(salts)) == 2
        plain = {"model": "tiny", "prompt": "x"}
        for headers in (ANNE, BEN):
            await client.post("/v1/completions", json=plain, headers=headers)
        assert [request.cache_salt for request in engine.requests[-2:]] == salts[:2]

    async def test_a_schema_is_tried_for_each_caller(self, app: FastAPI) -> None:
        grammars = app.state.services.preparer.grammars
        for caller in ("key anne", "key ben", "key anne"):
            await grammars.check('start: "a"', caller)
        assert len(grammars.known) == 2


async def test_without_isolation_everything_is_shared(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    body = {"model": "tiny", "messages": [picture_message("?", RED)]}
    for headers in (ANNE, BEN):
        await client.post(CHAT, json=body, headers=headers)
    assert [request.cache_salt for request in engine.requests] == [None, None]
    assert len({request.images[0].cache_key for request in engine.requests}) == 1
    assert re.fullmatch(r"[0-9a-f]{64}-[^ ]*", engine.requests[0].images[0].cache_key)


class TestKeptResponses:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        keys = [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]
        return {"api_key": keys, "response_store_bytes": 100_000}

    async def test_a_kept_response_is_there_for_its_own_key_alone(self, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "input": "x"}
        made = (await client.post("/v1/responses", json=body, headers=ANNE)).json()["id"]
        address, following = f"/v1/responses/{made}", {**body, "previous_response_id": made}
        answers = [
            await client.get(address, headers=BEN),
            await client.delete(address, headers=BEN),
            await client.post("/v1/responses", json=following, headers=BEN),
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 400]
        # As if it had never been.
        nowhere = await client.get("/v1/responses/resp_0123", headers=BEN)
        assert answers[0].json() == nowhere.json()
        assert (await client.post("/v1/responses", json=following, headers=ANNE)).status_code == 200
        assert (await client.delete(address, headers=ANNE)).status_code == 200
