"""Names that programs and home networks use: origins of desktop apps, routers' host names, the caller's request id."""

import json
import logging
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from llava_api.settings import Settings
from tests.api.test_chat import CHAT, text_body
from tests.api.test_errors import error_of
from tests.support.sse import chunks

APPS = ["app://obsidian.md", "tauri://localhost", "chrome-extension://*", "http://localhost:*", "http://[::1]:*"]


async def status_for(client: httpx.AsyncClient, origin: str) -> int:
    """Of a request of a page; a page may read it if, and only if, it is 200."""
    reply = await client.post(CHAT, json=text_body(), headers={"origin": origin, "sec-fetch-site": "cross-site"})
    preflight = await client.options(CHAT, headers={"origin": origin, "access-control-request-method": "POST"})
    assert (reply.headers.get("access-control-allow-origin") == origin) == (reply.status_code == 200)
    assert (preflight.status_code == 200) == (reply.status_code == 200)
    return reply.status_code


class TestListedOrigins:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"cors_allow_origins": APPS}

    @pytest.mark.parametrize(
        "origin",
        [
            "app://obsidian.md",
            "tauri://localhost",
            "chrome-extension://abcdefghijklmnop",
            "http://localhost",
            "http://localhost:5173",
            "http://[::1]:3000",
        ],
    )
    async def test_they_may_call(self, client: httpx.AsyncClient, origin: str) -> None:
        assert await status_for(client, origin) == 200

    @pytest.mark.parametrize(
        "origin",
        [
            "app://obsidian.md.evil",
            "app://other.md",
            "https://localhost:5173",
            "http://localhost.evil.example",
            "http://localhost:1@evil.example",
            "http://localhost:123456",
            "http://evil.example/http://localhost:1",
            "chrome-extension://",
            "moz-extension://abc",
            "http://127.0.0.1:3000",
            "null",
        ],
    )
    async def test_others_may_not(self, client: httpx.AsyncClient, origin: str) -> None:
        assert await status_for(client, origin) == 403


@pytest.mark.parametrize(
    "origin", ["http://*", "https://*", "http://*.example.com", "null", "app://", "*://a", "http://a/b"]
)
def test_what_cannot_be_listed(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings.model_validate({"cors_allow_origins": [origin]})


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"host": "server.fritz.box:8000"}, "--allowed-hosts server.fritz.box,"),
        ({"host": "LLM.lan"}, "--allowed-hosts llm.lan,"),
        ({"host": "llm.home"}, "--allowed-hosts llm.home,"),
        ({"host": "box.tail1234.ts.net"}, "--allowed-hosts box.tail1234.ts.net,"),
        ({"host": f"{'a' * 200}.lan"}, "--allowed-hosts and its name"),
        ({"origin": "app://obsidian.md"}, "--cors-allow-origins app://obsidian.md."),
        ({"origin": "http://localhost:5173"}, "--cors-allow-origins http://localhost:5173."),
        ({"origin": "null"}, "--cors-allow-origins and its origin"),
        ({"origin": "http://a<script>/"}, "--cors-allow-origins and its origin"),
    ],
)
async def test_a_refusal_names_the_flag(client: httpx.AsyncClient, headers: dict[str, str], words: str) -> None:
    reply = await client.post(CHAT, json=text_body(), headers=headers)
    assert reply.status_code == 403
    assert words.removesuffix(",") in error_of(reply)["message"]


class TestListedHosts:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"allowed_hosts": ["llm.lan", "*.fritz.box"]}

    async def test_they_are_answered(self, client: httpx.AsyncClient) -> None:
        for host in ("llm.lan:8000", "server.fritz.box"):
            assert (await client.post(CHAT, json=text_body(), headers={"host": host})).status_code == 200


async def test_a_request_id_of_the_caller_is_ignored(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=text_body(), headers={"x-request-id": "mine"})
    assert reply.headers["x-request-id"].startswith("req_")


class TestCallersRequestIds:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"accept_request_ids": True}

    @pytest.mark.parametrize(
        ("sent", "used"),
        [
            ("4bf92f35-77b3/4da6:a3ce.929+d0=_", "4bf92f35-77b3/4da6:a3ce.929+d0=_"),
            ("a b\tc\x1b[31m", "abc31m"),
            ("x" * 500, "x" * 128),
        ],
    )
    async def test_it_is_used_and_cleaned(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, sent: str, used: str
    ) -> None:
        caplog.set_level(logging.INFO, "llava_api.access")
        reply = await client.post(CHAT, json=text_body(), headers={"x-request-id": sent})
        assert reply.headers["x-request-id"] == used
        assert any(used in json.dumps(record.__dict__, default=str) for record in caplog.records)
        assert used not in reply.json()["id"]

    @pytest.mark.parametrize("sent", ["", "   ", "<>"])
    async def test_an_empty_one_is_none(self, client: httpx.AsyncClient, sent: str) -> None:
        reply = await client.post(CHAT, json=text_body(), headers={"x-request-id": sent})
        assert reply.headers["x-request-id"].startswith("req_")

    async def test_two_requests_of_one_id_are_two(self, client: httpx.AsyncClient) -> None:
        same = {"x-request-id": "same"}
        replies = [await client.post(CHAT, json=text_body(stream=True), headers=same) for _ in range(2)]
        first, second = (chunks(reply.content)[0]["id"] for reply in replies)
        assert first != second
