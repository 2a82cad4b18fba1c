"""What Prometheus is told, and that no client can make it more."""

import asyncio
import random
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY, Counter

from llava_api.concurrency.admission import Admission
from llava_api.images.fetch import Resolve
from llava_api.telemetry.metrics import STATES
from tests.api.test_chat import BLUE, CHAT, RED, image_message, text_body
from tests.support.endpoints import ALL
from tests.support.metrics_page import OPENMETRICS, Page, read_page
from tests.support.scripted_engine import ScriptedEngine
from tests.support.web import Web

KEYS = {name: f"sk-llava-for-{name}-0123456789" for name in ("anne", "ben")}
ANNE, BEN = ({"authorization": f"Bearer {key}"} for key in KEYS.values())


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings(api_key=[f"{name}={key}" for name, key in KEYS.items()])


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


async def page_of(client: httpx.AsyncClient) -> Page:
    return read_page((await client.get("/metrics", headers=ANNE)).text)


async def test_a_request_is_counted(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "messages": [image_message("What?", RED, BLUE)], "stream": True}
    await client.post(CHAT, json=body, headers=ANNE)
    await client.post(CHAT, json={**body, "stream": False}, headers=BEN)
    page = await page_of(client)
    for key in KEYS:
        series = {"route": CHAT, "method": "POST", "status": "200", "key": key}
        assert page.value("llava_api_requests_total", **series) == 1
        assert page.value("llava_api_completion_tokens_total", model="tiny", key=key) == 3
        assert page.value("llava_api_prompt_tokens_total", model="tiny", key=key) > 72  # type: ignore[operator]
    assert page.value("llava_api_request_outcomes_total", outcome="ok", model="tiny") == 2
    assert page.value("llava_api_request_duration_seconds_count", route=CHAT) == 2
    assert page.value("llava_api_time_to_first_token_seconds_count") == 2
    assert page.value("llava_api_queue_wait_seconds_count") == 2
    # Three tokens have two gaps.
    assert page.value("llava_api_inter_token_latency_seconds_count") == 4
    assert page.value("llava_api_images_total") == 4
    assert page.value("llava_api_image_tokens_total") == 144
    assert page.value("llava_api_image_pixels_total") == 4 * 60 * 40
    assert page.value("llava_api_image_cache_lookups_total", result="miss") == 2
    assert page.value("llava_api_image_cache_lookups_total", result="hit") == 2
    assert page.value("llava_api_image_decode_seconds_count") == 2
    assert page.value("llava_api_image_cache_bytes") == 2 * 3 * 84 * 84
    assert page.value("llava_api_slots") == 8
    # Itself.
    assert page.value("llava_api_requests_in_progress") == 1


async def test_what_is_served_and_by_what(client: httpx.AsyncClient) -> None:
    page = await page_of(client)
    model = {"model": "owner/tiny", "family": "vicuna_v1", "image_mode": "pad", "version": "1.5", "format": "hub"}
    assert page.value("llava_api_model_info", **model) == 1
    assert page.labels("llava_api_build_info", "version").isdisjoint({"", "other"})
    assert page.total("llava_api_build_info") == 1


async def test_images_from_the_web_are_timed(client: httpx.AsyncClient, web: Web) -> None:
    for path in ("/good.png", "/status/404"):
        message = image_message("What?", web.host.url(path))
        await client.post(CHAT, json={"model": "tiny", "messages": [message]}, headers=ANNE)
    page = await page_of(client)
    assert page.value("llava_api_image_fetch_seconds_count", outcome="ok") == 1
    assert page.value("llava_api_image_fetch_seconds_count", outcome="failed") == 1
    assert page.value("llava_api_rejections_total", reason="image_fetch_failed") == 1


async def test_refusals_have_their_reason(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json=text_body(temperature=-9), headers=ANNE)
    await client.post(CHAT, content=b"{", headers=ANNE)
    await client.post(CHAT, json=text_body())
    await client.post(CHAT, json={**text_body(), "model": "other"}, headers=ANNE)
    engine.fail_at = 1
    # One as a status, one inside a stream.
    for stream in (False, True):
        await client.post(CHAT, json=text_body(stream=stream), headers=ANNE)
    response = {"model": "tiny", "input": "Hello.", "stream": True}
    await client.post("/v1/responses", json=response, headers=ANNE)
    page = await page_of(client)
    for reason in ("invalid_request", "invalid_json", "invalid_api_key", "model_not_found"):
        assert page.value("llava_api_rejections_total", reason=reason) == 1, reason
    assert page.value("llava_api_rejections_total", reason="engine_failed") == 3
    assert page.total("llava_api_request_outcomes_total", outcome="refused") == 4
    assert page.value("llava_api_request_outcomes_total", outcome="refused", model="other") == 1
    assert page.value("llava_api_request_outcomes_total", outcome="failed", model="tiny") == 3
    # Two of them are streams, whose status was 200.
    assert page.value("llava_api_request_failures_total", model="tiny", key="anne") == 3
    unknown = {"route": CHAT, "method": "POST", "status": "401", "key": "-"}
    assert page.value("llava_api_requests_total", **unknown) == 1


async def test_the_queue_is_seen(client: httpx.AsyncClient, engine: ScriptedEngine, app: FastAPI) -> None:
    engine.pause_seconds = 0.05
    admission: Admission = app.state.services.admission
    admission.slots = 1
    asking = [asyncio.create_task(client.post(CHAT, json=text_body(), headers=ANNE)) for _ in range(3)]
    async with asyncio.timeout(5):
        while admission.waiting < 2:
            await asyncio.sleep(0.005)
    page = await page_of(client)
    assert page.value("llava_api_queue_depth") == 2
    assert page.value("llava_api_slots_in_use") == 1
    assert page.value("llava_api_requests_in_progress") == 4
    await asyncio.gather(*asking)
    page = await page_of(client)
    assert page.value("llava_api_queue_depth") == 0
    assert page.value("llava_api_slots_in_use") == 0
    assert page.value("llava_api_queue_wait_seconds_count") == 3
    assert page.value("llava_api_queue_wait_seconds_bucket", le="0.025") == 1


async def test_first_token_and_queue_wait_are_seen_before_the_request_ends(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.say("A", "B", "C")
    engine.pause_seconds = 0.3
    asking = asyncio.create_task(client.post(CHAT, json=text_body(stream=True), headers=ANNE))
    async with asyncio.timeout(5):
        while (await page_of(client)).value("llava_api_queue_wait_seconds_count") != 1:
            await asyncio.sleep(0.005)
        while (await page_of(client)).value("llava_api_time_to_first_token_seconds_count") != 1:
            await asyncio.sleep(0.005)
    assert not asking.done()
    await asking
    page = await page_of(client)
    assert page.value("llava_api_time_to_first_token_seconds_count") == 1
    assert page.value("llava_api_queue_wait_seconds_count") == 1


async def test_each_adapter_has_its_outcomes(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json={**text_body(), "model": "birds"}, headers=ANNE)
    engine.fail_at = 1
    await client.post(CHAT, json={**text_body(), "model": "birds"}, headers=BEN)
    page = await page_of(client)
    for outcome, model, times in (("ok", "birds", 1), ("failed", "birds", 1), ("failed", "tiny", 0)):
        assert page.value("llava_api_request_outcomes_total", outcome=outcome, model=model) == times
    assert page.value("llava_api_request_failures_total", model="birds", key="ben") == 1


async def test_the_state_is_what_the_health_says(
    client: httpx.AsyncClient, app: FastAPI, engine: ScriptedEngine
) -> None:
    lifecycle = app.state.lifecycle

    async def state() -> set[str]:
        page = await page_of(client)
        return {each for each in STATES if page.value("llava_api_state", state=each) == 1}

    assert await state() == {"ready"}
    engine.dead = True
    assert await state() == {"lost"}
    lifecycle.draining = True
    assert await state() == {"draining"}
    lifecycle.draining = app.state.loaded = False
    assert await state() == {"loading"}


async def test_every_answer_of_a_request_is_counted(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "temperature": 1}
    usage = (await client.post("/v1/completions", json=body, headers=ANNE)).json()["usage"]
    page = await page_of(client)
    assert page.value("llava_api_completion_tokens_total", model="tiny", key="anne") == usage["completion_tokens"] == 12
    assert page.value("llava_api_prompt_tokens_total", model="tiny", key="anne") == usage["prompt_tokens"]
    # Of each of the four answers.
    assert page.value("llava_api_inter_token_latency_seconds_count") == 8


async def test_no_client_can_add_a_series(client: httpx.AsyncClient) -> None:
    """A thousand odd addresses, methods, models, keys and images add as many series as one of each."""
    chance = random.Random(7)
    methods = ("GET", "POST", "PURGE", "X" * 200, "GÉT".encode().decode("latin-1"), "OPTIONS", "PATCH")

    def odd() -> str:
        return "".join(chance.choices("abcXYZ019%._-~!$&'()*+,;=:@", k=chance.randint(1, 60)))

    async def attack(times: int) -> None:
        for number in range(times):
            method = chance.choice(methods) if number % 2 else odd().upper().replace("%", "M").translate(NO_SEPARATORS)
            path = "/" + odd() if number % 3 else f"/v1/models/{odd()}"
            headers = {"authorization": f"Bearer {odd()}"} if number % 4 == 0 else ANNE
            await client.request(method, path, headers=headers, content=b"{}")
            body = {**text_body(), "model": odd(), "user": odd(), odd(): odd()}
            await client.post(CHAT, json=body, headers={**BEN, "user-agent": odd(), "traceparent": odd()})
            await client.post(f"/v1/responses/{odd().replace('%', '')}", headers=ANNE)

    await attack(10)
    for status in (text_body(), {**text_body(), "model": 1}):
        await client.post(CHAT, json=status, headers=ANNE)
    await attack(100)
    await page_of(client)
    before = await page_of(client)
    await attack(340)
    after = await page_of(client)
    assert after.total("llava_api_requests_total") - before.total("llava_api_requests_total") > 1000
    ours = [{series for series in page.samples if series[0].startswith("llava_api_")} for page in (before, after)]
    added = {series for series in ours[1] - ours[0] if not series[0].endswith("_created")}
    assert after.labels("llava_api_requests_total", "key") <= {"-", "anne", "ben"}
    assert after.labels("llava_api_requests_total", "method") <= {*METHODS, "other"}
    assert after.labels("llava_api_requests_total", "route") <= {*ROUTES, "other"}
    assert after.labels("llava_api_request_outcomes_total", "model") == {"tiny", "owner/tiny", "birds", "other", "-"}
    assert after.labels("llava_api_prompt_tokens_total", "model") <= {"tiny", "owner/tiny", "birds", "other"}
    assert added == set()
    assert len(ours[1]) < 450


NO_SEPARATORS = str.maketrans(dict.fromkeys('()<>@,;:\\"/[]?={} \t', "-"))
METHODS = ("GET", "POST", "OPTIONS", "PATCH", "PUT", "HEAD", "DELETE")
ROUTES = {endpoint.pattern for endpoint in ALL}


async def test_both_formats(client: httpx.AsyncClient) -> None:
    await client.post(CHAT, json=text_body(), headers=ANNE)
    plain = await client.get("/metrics", headers=ANNE)
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    open_metrics = await client.get("/metrics", headers={**ANNE, "accept": OPENMETRICS})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert open_metrics.text.endswith("# EOF\n")
    series = {"model": "tiny", "key": "anne"}
    for page in (read_page(plain.text), read_page(open_metrics.text, openmetrics=True)):
        assert page.value("llava_api_completion_tokens_total", **series) == 3
        # And Python's own, beside which vLLM's stand.
        assert "process_resident_memory_bytes" in page.names()


async def test_vllms_names_are_kept_in_both_formats(client: httpx.AsyncClient) -> None:
    """prometheus_client's own choice would make vllm_odd_requests_total of it in OpenMetrics."""
    counter = Counter("vllm:odd_requests", "As vLLM registers its own.", ["model_name"])
    counter.labels("tiny").inc(2)
    try:
        for accept in ("", OPENMETRICS, "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6"):
            text = (await client.get("/metrics", headers={**ANNE, "accept": accept})).text
            assert 'vllm:odd_requests_total{model_name="tiny"} 2.0' in text
            assert "vllm_" not in text
    finally:
        REGISTRY.unregister(counter)


async def test_a_key_is_needed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/metrics")).status_code == 401


class TestOpen:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"api_key": ["anne=sk-llava-for-anne-0123456789"], "metrics": "open"}

    async def test_no_key_is_needed(self, client: httpx.AsyncClient) -> None:
        # Slashes too many are cleaned before keys are looked at.
        for path in ("/metrics", "/metrics/"):
            assert (await client.get(path)).status_code == 200
        for path in ("/metrics/../v1/models", "/v1/models"):
            assert (await client.get(path)).status_code == 401


class TestOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"metrics": "off"}

    async def test_nothing_is_there(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/metrics")).status_code == 404
