"""vLLM's own series beside ours, from the real engine, under the names that gateways and dashboards read."""

import httpx
import pytest

from tests.engine.conftest import Running
from tests.support.dashboard import series_used
from tests.support.metrics_page import OPENMETRICS, Page, read_page

pytestmark = pytest.mark.asyncio(loop_scope="session")
READ_BY_GATEWAYS = (
    *("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"),
    *("vllm:cache_config_info", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket"),
)
ENGINE = {"engine": "0", "model_name": "endless"}


async def page_of(client: httpx.AsyncClient, accept: str = "") -> Page:
    reply = await client.get("/metrics", headers={"accept": accept})
    assert reply.status_code == 200
    return read_page(reply.text, openmetrics=accept == OPENMETRICS)


async def test_vllms_series_stand_beside_ours(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.base_url.removesuffix("/v1"), timeout=60) as client:
        before = await page_of(client)
        body = {"model": "endless", "prompt": "Hello", "max_tokens": 20}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        for accept in ("", OPENMETRICS):
            page = await page_of(client, accept)
            for name in READ_BY_GATEWAYS:
                # Under the name that the model is served by, not its folder's.
                assert page.labels(name, "model_name" if name != "vllm:cache_config_info" else "engine"), name
            # Other tests start engines in this process too.
            assert "endless" in page.labels("vllm:num_requests_running", "model_name")
            assert page.value("vllm:num_requests_running", **ENGINE) == 0
            # Ours are looked for in tests/unit/test_dashboard.py: some come with a router, a fleet or TLS only.
            assert {name for name in series_used() if not name.startswith("llava_api_")} <= page.names()
        for name in ("vllm:generation_tokens_total", "llava_api_completion_tokens_total"):
            assert page.total(name) - before.total(name) == 20, name
        assert page.total("vllm:num_requests_running") == 0
