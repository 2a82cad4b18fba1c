"""Who is answered: every address but health needs a key, however the request line and the Host header are bent."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_api.server.services import fingerprint_of
from tests.api.test_chat import CHAT, text_body
from tests.support.endpoints import ALL, HEALTH, example_address
from tests.support.scripted_engine import ScriptedEngine

KEY = "sk-llava-for-anne-0123456789"
OTHER = "sk-llava-for-ben-0123456789"
WITH = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def settings_made(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "keys").write_text(f"anne={KEY}\nben={OTHER}\n")
    return {
        "api_key_file": [str(tmp_path / "keys")],
        "response_store_bytes": 100_000,
        "cors_allow_origins": ["https://chat.example.com"],
    }


async def test_a_key_is_needed_everywhere_but_for_health(client: httpx.AsyncClient, app: FastAPI) -> None:
    keyed = [(endpoint.method, example_address(endpoint)) for endpoint in ALL if endpoint.path not in HEALTH]
    assert len(keyed) > 10
    for method, path in [*keyed, ("GET", "/nowhere"), ("GET", "/"), ("GET", CHAT)]:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
        ):
            reply = await client.request(method, path, json={} if method == "POST" else None, headers=headers)
            assert reply.status_code == 401, (method, path)
            error = reply.json()["error"]
            anthropic = path.startswith("/v1/messages")
            assert error["type"] == ("authentication_error" if anthropic else "invalid_request_error")
            assert error["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["x-request-id"].startswith("req_")
    for path in HEALTH:
        assert (await client.get(path)).status_code == 200


async def test_the_right_key_is_answered(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    for header in (f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {OTHER}"):
        assert (await client.post(CHAT, json=text_body(), headers={"authorization": header})).status_code == 200
    assert len(engine.requests) == 3
    two = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")]
    assert (await client.get("/v1/models", headers=two)).status_code == 401


async def test_a_browser_may_ask_beforehand_without_a_key(client: httpx.AsyncClient) -> None:
    asked = {"origin": "https://chat.example.com", "access-control-request-method": "POST"}
    assert (await client.options(CHAT, headers=asked)).status_code == 200
    # And a page can read why it was refused.
    refused = await client.post(CHAT, json=text_body(), headers={"origin": "https://chat.example.com"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://chat.example.com")


async def test_no_trace_of_a_key_is_in_the_fingerprint(client: httpx.AsyncClient, app: FastAPI) -> None:
    services = app.state.services
    other = services.settings.model_copy(update={"api_key": [f"cleo={KEY}"], "api_key_file": []})
    assert fingerprint_of(other, services.model) == services.fingerprint


class TestOpenDocs:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"api_key": [f"anne={KEY}"], "docs": "open"}

    async def test_the_page_needs_no_key_and_nothing_else_is_open(self, client: httpx.AsyncClient) -> None:
        for path in ("/docs", "/docs/", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert (await client.get(path)).status_code == 200
        for path in ("/docs/assets/", "/docs/assets/../../v1/models", "/v1/models"):
            assert (await client.get(path)).status_code == 401


# Over a socket, where a request line can be anything


async def status_of(port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


BENT = {
    "a host with a path": b"GET /v1/models HTTP/1.1\r\nHost: evil/health?\r\n\r\n",
    "an absolute target": b"GET http://evil/v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "an absolute target like health": b"GET http://a/health/../v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "two slashes": b"GET //v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "health as a host": b"GET //health/v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "an encoded slash": b"GET /v1%2fmodels HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded dots": b"GET /health/%2e%2e/v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots": b"GET /health/../v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b/health\r\n\r\n",
    "a query like health": b"GET /v1/models?/health HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /v1/models#/health HTTP/1.1\r\nHost: a\r\n\r\n",
    "another case": b"GET /HEALTH/live/../../v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "forwarded": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\n\r\n",
}


@pytest.mark.parametrize("name", BENT)
async def test_no_bent_request_line_gets_past_the_key(port: int, name: str) -> None:
    assert await status_of(port, BENT[name]) in (400, 401)
    assert await status_of(port, b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n") == 200


async def test_a_kept_response_is_there_for_its_own_key_alone(client: httpx.AsyncClient) -> None:
    others = {"authorization": f"Bearer {OTHER}"}
    asked = {"model": "tiny", "input": "hi"}
    made = (await client.post("/v1/responses", json=asked, headers=WITH)).json()["id"]
    for method in ("GET", "DELETE"):
        assert (await client.request(method, f"/v1/responses/{made}", headers=others)).status_code == 404
    going_on = {**asked, "previous_response_id": made}
    refused = await client.post("/v1/responses", json=going_on, headers=others)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
    assert (await client.post("/v1/responses", json=going_on, headers=WITH)).status_code == 200
    assert (await client.delete(f"/v1/responses/{made}", headers=WITH)).status_code == 200
