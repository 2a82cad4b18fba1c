"""What is kept of one caller and not used for another."""

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from tests.api.test_chat import CHAT, RED, image_message
from tests.api.test_queue import ANNE, BEN
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"api_key": [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]}


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
        url = data_url(Image.new("RGB", (30, 30), "green"))
        body = {"model": "tiny", "messages": [image_message("?", url)]}
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
    body = {"model": "tiny", "messages": [image_message("?", RED)]}
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

    async def test_a_kept_response_is_there_only_for_its_own_key(self, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "input": "x"}
        first = (await client.post("/v1/responses", json=body, headers=ANNE)).json()
        made, item = first["id"], first["output"][0]["id"]
        address, following = f"/v1/responses/{made}", {**body, "previous_response_id": made}
        given = (await client.get(f"{address}/input_items", headers=ANNE)).json()["data"][0]["id"]
        answers = [
            await client.get(address, headers=BEN),
            await client.delete(address, headers=BEN),
            await client.get(f"{address}/input_items", headers=BEN),
            await client.post(f"{address}/cancel", headers=BEN),
            await client.post("/v1/responses", json=following, headers=BEN),
            await client.post("/v1/responses/input_tokens", json=following, headers=BEN),
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 404, 404, 400, 400]
        # As if it had never been.
        nowhere = await client.get("/v1/responses/resp_0123", headers=BEN)
        assert [answer.json() for answer in answers[:4]] == [nowhere.json()] * 4
        for reference in (item, given):
            referring = {
                **body,
                "input": [{"type": "item_reference", "id": reference}, {"role": "user", "content": "?"}],
            }
            refused = await client.post("/v1/responses", json=referring, headers=BEN)
            assert (refused.status_code, refused.json()["error"]["param"]) == (404, "input[0].id")
            assert (await client.post("/v1/responses", json=referring, headers=ANNE)).status_code == 200
        assert (await client.post("/v1/responses", json=following, headers=ANNE)).status_code == 200
        assert (await client.delete(address, headers=ANNE)).status_code == 200
