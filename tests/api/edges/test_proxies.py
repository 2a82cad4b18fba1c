"""A proxy in front of the server: its path prefix, and the address of the caller."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from llava_api.server.state import exchange_of
from llava_api.settings import Settings
from tests.support.running_server import RunningServer, serve_app

KEY = "sk-llava-for-anne-0123456789"
WITH = f"Authorization: Bearer {KEY}\r\n"


async def status_of(edge: RunningServer, target: str, headers: str = "") -> int:
    return (await edge.ask(f"GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode("latin-1"))).status


class TestRootPath:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"root_path": "/prefix/", "api_key": [f"anne={KEY}"]}

    @pytest.mark.parametrize("prefix", ["", "/prefix", "http://a/prefix"])
    async def test_stripped_or_not(self, edge: RunningServer, prefix: str) -> None:
        for path in ("/health/live", "/health"):
            assert await status_of(edge, prefix + path) == 200
        assert await status_of(edge, f"{prefix}/v1/models") == 401
        assert await status_of(edge, f"{prefix}/v1/models", WITH) == 200
        assert await status_of(edge, f"{prefix}/docs", WITH) == 200
        assert await status_of(edge, f"{prefix}/docs/assets/swagger-ui.css", WITH) == 200
        assert await status_of(edge, f"{prefix}/nowhere", WITH) == 404

    @pytest.mark.parametrize(
        "target",
        [
            "/prefix/health/../v1/models",
            "/prefix//v1/models",
            "/prefix/v1%2fmodels",
            "/prefix%2fv1/models",
            "/prefix/%2e%2e/v1/models",
            "/prefix/health/%2e%2e/v1/models",
            "/health/../prefix/v1/models",
            "/health/prefix/v1/models",
            "//prefix/v1/models",
            "/prefix/prefix/v1/models",
            "/prefix/health/live/v1/models",
            "/prefixv1/models",
            "/prefix",
            "/prefix/",
            "/PREFIX/v1/models",
            "/prefix;/v1/models",
            "/prefix/v1/models?/health",
            "http://a/health/../prefix/v1/models",
        ],
    )
    async def test_no_hole_in_it(self, edge: RunningServer, target: str) -> None:
        assert await status_of(edge, target) == 401
        assert await status_of(edge, target, "X-Forwarded-Prefix: /health\r\nX-Original-URL: /health\r\n") == 401

    async def test_only_health_is_open(self, edge: RunningServer) -> None:
        for target in (
            "/prefix/prefix/health",
            "/prefixhealth",
            "/health/prefix",
            "/prefix//prefix/health/",
        ):
            assert await status_of(edge, target) == 401
        for target in ("/prefix//health", "/prefix/health/"):
            assert await status_of(edge, target) == 200


@pytest.mark.parametrize("root_path", ["prefix", "/a b", "/a/../b", "/a//b", "/a?b", "/%2f", "/."])
def test_what_is_no_path(root_path: str) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        Settings(root_path=root_path)


@pytest.mark.parametrize("trusted", [["proxy.example.com"], ["*"], ["1.2.3"]])
def test_what_is_no_address(trusted: list[str]) -> None:
    with pytest.raises(ValueError, match="is not a network"):
        Settings(trusted_proxies=trusted)


def watched(app: FastAPI) -> list[tuple[str, str]]:
    """Collects the caller that each request's limits are counted for, and its scheme."""
    seen: list[tuple[str, str]] = []

    @app.get("/who")
    async def who(request: Request) -> None:
        seen.append((exchange_of(request.scope).caller, request.url.scheme))

    return seen


FORGED = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\n"


async def test_no_proxy_is_believed_by_default(
    app: FastAPI, edge: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    seen = watched(app)
    await status_of(edge, "/who", FORGED)
    assert seen == [("127.0.0.1", "http")]


class TestTrusted:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"trusted_proxies": ["127.0.0.1", "10.1.2.3/16", "2001:db8::/32"]}

    @pytest.mark.parametrize(
        ("headers", "caller"),
        [
            ("", "127.0.0.1"),
            ("X-Forwarded-For: 9.9.9.9\r\n", "9.9.9.9"),
            # What the client wrote itself comes before what the proxy wrote.
            ("X-Forwarded-For: 1.1.1.1, 9.9.9.9\r\n", "9.9.9.9"),
            ("X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 9.9.9.9\r\n", "9.9.9.9"),
            ("X-Forwarded-For: 1.1.1.1, 9.9.9.9, 10.1.0.1, 2001:db8::1\r\n", "9.9.9.9"),
            ("X-Forwarded-For: 127.0.0.1, 9.9.9.9\r\n", "9.9.9.9"),
            ("X-Forwarded-For: 10.1.0.7, 10.1.0.1\r\n", "10.1.0.7"),
            ("X-Forwarded-For: 9.9.9.9:1234\r\n", "9.9.9.9"),
            ("X-Forwarded-For: [2001:db9::1]:1234\r\n", "2001:db9::/64"),
            ("X-Forwarded-For: 2001:0DB9:0::1\r\n", "2001:db9::/64"),
            ("X-Forwarded-For: unknown\r\n", "127.0.0.1"),
            ("X-Forwarded-For: 9.9.9.9, unknown\r\n", "127.0.0.1"),
            ("X-Forwarded-For: 9.9.9.9, unknown, 10.1.0.1\r\n", "10.1.0.1"),
            ("X-Forwarded-For:\r\n", "127.0.0.1"),
            ("X-Forwarded-For: , ,\r\n", "127.0.0.1"),
            ("X-Real-IP: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\n", "127.0.0.1"),
        ],
    )
    async def test_the_caller_is_the_last_that_is_no_proxy(
        self, app: FastAPI, edge: RunningServer, headers: str, caller: str
    ) -> None:
        seen = watched(app)
        await status_of(edge, "/who", headers)
        assert seen == [(caller, "http")]

    async def test_the_scheme(self, app: FastAPI, edge: RunningServer) -> None:
        seen = watched(app)
        for written in ("https", "HTTPS", "javascript", "wss"):
            await status_of(edge, "/who", f"X-Forwarded-Proto: {written}\r\n")
        assert [scheme for _, scheme in seen] == ["https", "https", "http", "http"]


async def test_a_proxy_that_is_not_the_trusted_one(app: FastAPI) -> None:
    settings = app.state.services.settings
    app.state.services.settings = settings.model_copy(update={"trusted_proxies": ["10.0.0.0/8"]})
    seen = watched(app)
    async with serve_app(app) as edge:
        await status_of(edge, "/who", FORGED)
    assert seen == [("127.0.0.1", "http")]


class TestUnix:
    @pytest.fixture
    def settings_made(self, tmp_path: Path) -> dict[str, Any]:
        return {"trusted_proxies": ["unix"], "unix_socket": str(tmp_path / "llava.sock")}

    async def test_the_proxy_at_the_other_end_of_a_unix_socket(self, app: FastAPI, edge: RunningServer) -> None:
        seen = watched(app)
        await status_of(edge, "/who", FORGED)
        await status_of(edge, "/who")
        assert seen == [("9.9.9.9", "https"), ("", "http")]


class TestBothKinds:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"host": "::", "trusted_proxies": ["127.0.0.0/8"]}

    async def test_ipv4_on_a_socket_for_both_is_the_same_caller(self, app: FastAPI, edge: RunningServer) -> None:
        seen = watched(app)
        edge.address = ("127.0.0.1", edge.address[1])
        await status_of(edge, "/who")
        await status_of(edge, "/who", "X-Forwarded-For: 9.9.9.9\r\n")
        edge.address = ("::1", edge.address[1])
        await status_of(edge, "/who", "X-Forwarded-For: 9.9.9.9\r\n")
        assert [caller for caller, _ in seen] == ["127.0.0.1", "9.9.9.9", "::/64"]
