"""What else holds for one caller: requests at once, the longest answer, turns by weight; and who is one caller."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_api.limits.account import RateLimiter
from llava_api.limits.keys import KeyRing
from llava_api.limits.memory import MemoryBudget
from llava_api.server.app import create_app
from llava_api.server.exchange import caller_of_address
from llava_api.server.lifespan import watch_files
from tests.api.test_chat import CHAT, text_body
from tests.api.test_limits import two_keys
from tests.api.test_queue import ANNE, BEN, until
from tests.support.clock import Clock
from tests.support.endpoints import EXAMPLE_BODIES
from tests.support.scripted_engine import ScriptedEngine


@pytest.fixture
def limits() -> str:
    """The file of limits; overridden by tests."""
    return ""


@pytest.fixture
def settings_made(tmp_path: Path, limits: str) -> dict[str, Any]:
    return two_keys(tmp_path, limits)


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
        body = {name: value for name, value in EXAMPLE_BODIES[path].items() if name != field}
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

    async def test_each_scored_choice_is_a_turn(
        self, app: FastAPI, client: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        app.state.services.admission.slots = 1
        engine.say("a")
        served: list[str] = []

        async def ask(name: str, headers: dict[str, str], **more: Any) -> None:
            assert (await client.post(CHAT, json=text_body(**more), headers=headers)).status_code == 200
            served.append(name)

        # With a weight of 3, a turn of one answer and 29 choices is worth ten of Ben's.
        scored = {"structured_outputs": {"choice": [f"{number}a" for number in range(29)]}, "logprobs": True}
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(ask("anne", ANNE, **scored))
            await until(lambda: app.state.services.admission.waiting)
            for _ in range(30):
                group.create_task(ask("ben", BEN))
        assert 3 <= served[:33].count("anne") <= 5


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
        keys = KeyRing(settings)
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
        monkeypatch.setattr("llava_api.server.lifespan.WATCH_SECONDS", 0.01)
        limiter: RateLimiter = app.state.services.limiter
        watching = asyncio.create_task(watch_files([limiter.table.refresh]))
        (tmp_path / "limits.toml").write_text("[anne]\nrequests_per_minute = 1\n")
        await until(lambda: limiter.table.limits_of("key anne").requests_per_minute == 1)
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
        memory = MemoryBudget(1)
        for number in range(10_000):
            account = limiter.account(f"10.0.{number // 256}.{number % 256}", memory)
            await account.enter()
            await account.spend_prompt(10)
            account.owe(10)
            account.leave()
            await account.settle()
        assert len(limiter.windows.own) == 20_000
        clock.now += 60
        await limiter.account("10.0.0.1", memory).enter()
        assert len(limiter.windows.own) == 1
        assert len(limiter.at_once) == 1


def test_whatever_a_proxy_names_is_a_caller() -> None:
    assert caller_of_address("not an address" * 100) == ("not an address" * 100)[:64]
    assert caller_of_address("fe80::1%eth0") == "fe80::/64"
    assert caller_of_address("") == ""
