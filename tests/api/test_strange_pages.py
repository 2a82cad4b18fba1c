"""A server without keys on somebody's machine, and the web pages that somebody looks at."""

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest

from tests.api.test_chat import CHAT, text_body
from tests.support.endpoints import ALL, HEALTH, example_address
from tests.support.scripted_engine import ScriptedEngine

OURS = "https://chat.example.com"
EVIL = "https://evil.example.net"


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"cors_allow_origins": [OURS], "allowed_hosts": ["llava.example.com", "*.apps.example.com"]}


async def say(port: int, *lines: str, method: str = "POST", path: str = CHAT, protocol: str = "HTTP/1.1") -> Any:
    """(status, error code or None) of a request with just these header lines."""
    body = json.dumps(text_body()) if method == "POST" else ""
    head = [f"{method} {path} {protocol}", *lines, "Connection: close"]
    head += [f"Content-Length: {len(body)}"] if body else []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([*head, "", body]).encode("latin-1"))
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    status = int(head_bytes.split()[1])
    error = json.loads(content).get("error") if method != "HEAD" and content.startswith(b"{") else None
    if error is not None:
        assert set(error) == {"message", "type", "param", "code"}
        assert b"x-request-id: req_" in head_bytes
    return status, error and error["code"]


KNOWN = [
    *(
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "my.localhost",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]:8000",
        "[::1]",
    ),
    *("192.168.1.7:8000", "10.0.3.4", "8.8.8.8", "[2001:db8::1]:80"),
    *("llava-api", "llava-api:8000", "llava_api", "llava-api.models.svc", "llava-api.models.svc.cluster.local"),
    *("nas.local", "gpu.internal", "nas.home.arpa", "llava.example.com", "LLAVA.example.com:443", "a.apps.example.com"),
    *("b.a.apps.example.com", socket.gethostname()),
]
STRANGE = [
    *(
        "evil.example.net",
        "evil.example.net:8000",
        "127.0.0.1.evil.net",
        "localhost.evil.net",
        "evil.net.",
        "apps.example.com",
        "xllava.example.com",
    ),
    *("1.2.3", "0x7f.1", "127.0.0.1.nip.io", "llava-api.app", "evil.notlocal", "llava.example.com.evil.net"),
]
NO_NAME = [
    "",
    " ",
    "a b",
    "a/b",
    "a@b",
    "localhost#evil",
    "localhost:x",
    "local\xe9",
    "http://localhost",
    "localhost,evil.net",
    "[evil]",
]


@pytest.mark.parametrize("host", KNOWN)
async def test_names_that_nobody_else_can_have(port: int, host: str) -> None:
    assert await say(port, f"Host: {host}") == (200, None)


@pytest.mark.parametrize("host", STRANGE)
async def test_a_name_that_was_made_to_stand_for_this_machine(port: int, engine: ScriptedEngine, host: str) -> None:
    # To the browser all of it is of one origin.
    lines = [f"Host: {host}", f"Origin: http://{host}", "Sec-Fetch-Site: same-origin"]
    assert await say(port, *lines) == (403, "host_not_allowed")
    for path in [
        "/nowhere",
        *(example_address(each) for each in ALL if each.method == "GET" and each.path not in HEALTH),
    ]:
        assert await say(port, *lines, method="GET", path=path) == (403, "host_not_allowed")
    assert engine.requests == []
    assert await say(port, *lines, method="GET", path="/health/live") == (200, None)


@pytest.mark.parametrize("host", NO_NAME)
async def test_what_is_no_host(port: int, host: str) -> None:
    status, _ = await say(port, f"Host: {host}")
    assert status == 400


async def test_one_host_and_no_more(port: int) -> None:
    assert (await say(port, "Host: localhost", "Host: evil.example.net"))[0] == 400
    assert (await say(port, "Host: localhost", "Host: localhost"))[0] == 400
    assert (await say(port))[0] == 400
    assert await say(port, protocol="HTTP/1.0") == (200, None)
    assert await say(port, "Host: evil.example.net", protocol="HTTP/1.0") == (403, "host_not_allowed")
    # An absolute target must name the same host, and does not make it a known one.
    for host, status in (("localhost", 400), ("evil.example.net", 403)):
        path = f"http://{host}/v1/models"
        assert (await say(port, "Host: evil.example.net", method="GET", path=path))[0] == status


FROM_STRANGERS = {
    "a page": [f"Origin: {EVIL}", "Sec-Fetch-Site: cross-site"],
    "a page of another server on this machine": ["Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"],
    "a page over plain http, where browsers say less": ["Origin: http://evil.example.net"],
    "a sandboxed frame, a file": ["Origin: null"],
    "a form": ["Content-Type: text/plain", f"Origin: {EVIL}"],
    "a page without Origin": ["Sec-Fetch-Site: cross-site"],
    "another port": ["Origin: http://localhost"],
    "another name of this machine": ["Origin: http://127.0.0.1:8000"],
    "two origins": [f"Origin: {OURS}", f"Origin: {EVIL}"],
    "two in one": [f"Origin: {OURS}, {EVIL}"],
    "an origin that begins like ours": [f"Origin: {OURS}.evil.net"],
    "a word": ["Origin: localhost:8000"],
    "two sites": ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"],
}


@pytest.mark.parametrize("who", FROM_STRANGERS)
async def test_a_page_of_another_origin_uses_nothing(port: int, engine: ScriptedEngine, who: str) -> None:
    for endpoint in ALL:
        if endpoint.method != "GET":
            lines = ["Host: localhost:8000", *FROM_STRANGERS[who]]
            said = await say(port, *lines, method=endpoint.method, path=example_address(endpoint))
            assert said == (403, "origin_not_allowed")
    assert engine.requests == []


WELCOME = {
    "no browser": [],
    "our own page": ["Origin: http://localhost:8000", "Sec-Fetch-Site: same-origin"],
    "our own page over plain http": ["Origin: http://localhost:8000"],
    "our own page behind a proxy with TLS": ["Origin: https://localhost:8000"],
    "an allowed origin": [f"Origin: {OURS}", "Sec-Fetch-Site: cross-site"],
    "somebody's address bar": ["Sec-Fetch-Site: none"],
}


@pytest.mark.parametrize("who", WELCOME)
async def test_who_is_answered(port: int, who: str) -> None:
    assert await say(port, "Host: localhost:8000", *WELCOME[who]) == (200, None)


async def test_looking_at_a_page_changes_nothing(port: int) -> None:
    """A link from elsewhere to /docs: a page may be opened, and one of another origin cannot read it."""
    lines = ["Host: localhost:8000", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]
    assert await say(port, *lines, method="GET", path="/docs") == (200, None)


async def test_a_refused_preflight_has_the_shape_of_every_error(client: httpx.AsyncClient) -> None:
    asked = {"access-control-request-method": "POST"}
    for headers in ({"origin": EVIL, **asked}, {"origin": OURS, "access-control-request-method": "PATCH"}):
        reply = await client.options(CHAT, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "origin_not_allowed")
        assert reply.headers["content-type"] == "application/json"
        assert "Origin" in reply.headers["vary"]
        assert reply.headers["x-request-id"].startswith("req_")
    assert "access-control-allow-origin" not in (await client.options(CHAT, headers={"origin": EVIL, **asked})).headers


async def test_an_allowed_page_can_read_why_it_is_refused(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=text_body(), headers={"origin": OURS, "host": "evil.example.net"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (403, OURS)


class TestWithoutCors:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {}

    async def test_no_page_is_let_in(self, port: int) -> None:
        asked = [f"Origin: {EVIL}", "Access-Control-Request-Method: POST"]
        assert (await say(port, "Host: localhost", *asked, method="OPTIONS"))[0] == 405
        assert (await say(port, "Host: localhost", f"Origin: {EVIL}"))[0] == 403
        assert (await say(port, "Host: llava.example.com"))[0] == 403


class TestAnyHostAndOrigin:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"cors_allow_origins": ["*"], "allowed_hosts": ["*"]}

    async def test_by_setting(self, port: int) -> None:
        assert await say(port, "Host: evil.example.net", f"Origin: {EVIL}", "Sec-Fetch-Site: cross-site") == (200, None)


class TestABoundName:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"host": "llava.example.org", "allow_anonymous": True}

    async def test_is_known(self, port: int) -> None:
        assert await say(port, "Host: llava.example.org:8000") == (200, None)
        assert await say(port, "Host: www.llava.example.org:8000") == (403, "host_not_allowed")


class TestWithKeys:
    """A key is what no page has: nothing else is asked for."""

    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"api_key": ["anne=sk-llava-for-anne-0123456789"]}

    async def test_the_key_decides(self, port: int) -> None:
        lines = ["Host: llava.example.org", f"Origin: {EVIL}", "Sec-Fetch-Site: cross-site"]
        assert await say(port, *lines) == (401, "invalid_api_key")
        assert await say(port, *lines, "Authorization: Bearer sk-llava-for-anne-0123456789") == (200, None)
