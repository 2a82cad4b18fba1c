"""The OpenAPI document has every route, and its page and examples work."""

import json
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from tests.support.endpoints import EXAMPLE_BODIES


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"cors_allow_origins": ["https://chat.example.com"]}


async def test_every_route_is_described(client: httpx.AsyncClient, app: FastAPI) -> None:
    document = (await client.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    served = {
        (method, re.sub(r"{(\w+):path}", "{model}", route.path).replace("resp_{number}", "{response_id}"))
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith(("/docs", "/openapi", "/metrics"))
        for method in route.methods or ()
    }
    assert described == {(method, path) for method, path in served if method != "HEAD"}


async def test_every_example_is_a_valid_request(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    examples = {
        path: operation["requestBody"]["content"]["application/json"]["example"]
        for path, item in document["paths"].items()
        for operation in item.values()
        if "requestBody" in operation
    }
    assert examples.keys() == EXAMPLE_BODIES.keys()
    for path, example in examples.items():
        assert (await client.post(path, json=example)).status_code == 200


async def test_every_reference_resolves(client: httpx.AsyncClient) -> None:
    text = (await client.get("/openapi.json")).text
    schemas = json.loads(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) == set(schemas)


async def test_the_page_loads_nothing_from_other_servers(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    addresses = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(addresses) == 3
    for address in addresses:
        assert (await client.get(f"/{address}")).status_code == 200


async def test_only_listed_origins_are_allowed(client: httpx.AsyncClient) -> None:
    ours, theirs = "https://chat.example.com", "https://evil.example.com"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = await client.options("/v1/chat/completions", headers={"origin": ours, **asked})
    assert allowed.headers["access-control-allow-origin"] == ours
    refused = await client.get("/v1/models", headers={"origin": theirs})
    assert "access-control-allow-origin" not in refused.headers
    answered = await client.get("/v1/models", headers={"origin": ours})
    assert answered.headers["access-control-allow-origin"] == ours
    assert "x-request-id" in answered.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answered.headers


class TestSwitchedOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"docs": "off"}

    @pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/docs/assets/swagger-ui.css", "/chat/completions"])
    async def test_disabled_pages_are_not_found(self, client: httpx.AsyncClient, path: str) -> None:
        reply = await client.get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")

    async def test_no_origin_is_allowed(self, client: httpx.AsyncClient) -> None:
        reply = await client.get("/v1/models", headers={"origin": "https://chat.example.com"})
        assert "access-control-allow-origin" not in reply.headers


class TestShortPaths:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"short_paths": True}

    async def test_short_paths_answer_like_long_ones(self, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
        long, short = [await client.post(f"{prefix}/chat/completions", json=body) for prefix in ("/v1", "")]
        assert short.json()["choices"] == long.json()["choices"]
