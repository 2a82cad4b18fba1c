"""A Unix socket instead of a port."""

import socket
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from llava_api.cli.serve import check_exposure
from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing
from llava_api.server.listening import base_url, listen
from llava_api.server.state import exchange_of
from llava_api.settings import Settings
from tests.api.test_chat import CHAT, text_body
from tests.support.running_server import HEALTH, RunningServer, post, serve_app


@pytest.fixture
def settings_made(tmp_path: Path) -> dict[str, Any]:
    return {"unix_socket": str(tmp_path / "llava.sock")}


async def test_answered_and_cleaned_up(app: FastAPI, tmp_path: Path) -> None:
    path = tmp_path / "llava.sock"
    async with serve_app(app) as edge:
        assert oct(path.stat().st_mode & 0o777) == "0o660"
        caller = await edge.connect()
        assert (await caller.ask(HEALTH)).status == 200
        assert (await caller.ask(post(CHAT, text_body()))).status == 200
        assert (await edge.ask(b"nonsense\r\n\r\n")).error["code"] == "invalid_http"
    assert not path.exists()


async def test_the_caller_has_no_address(app: FastAPI, edge: RunningServer) -> None:
    seen: list[str] = []

    @app.get("/who")
    async def who(request: Request) -> None:
        seen.append(exchange_of(request.scope).caller)

    await edge.ask(b"GET /who HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
    assert seen == [""]


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "llava.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    settings = Settings(unix_socket=str(path), unix_socket_mode="600")
    with listen(settings) as listener:
        listener.listen()
        assert oct(path.stat().st_mode & 0o777) == "0o600"
        assert base_url(settings, listener) == "http://localhost/v1"
        with pytest.raises(StartupError, match="another server listens"):
            listen(settings)
        assert path.exists()
    assert not path.exists()


def test_the_socket_of_another_server_is_not_taken_along(tmp_path: Path) -> None:
    path = tmp_path / "llava.sock"
    settings = Settings(unix_socket=str(path))
    first = listen(settings)
    path.unlink()
    with listen(settings):
        first.close()
        assert path.exists()


def test_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StartupError, match="no socket"):
        listen(Settings(unix_socket=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(StartupError, match="No such file"):
        listen(Settings(unix_socket=str(tmp_path / "nowhere" / "llava.sock")))
    with pytest.raises(StartupError, match="too long"):
        listen(Settings(unix_socket=str(tmp_path / ("a" * 200))))


def test_it_counts_as_this_machine_only(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0", unix_socket=str(tmp_path / "llava.sock"))
    check_exposure(settings, KeyRing(settings))
    with pytest.raises(StartupError):
        check_exposure(settings.model_copy(update={"unix_socket": None}), KeyRing(settings))


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("localhost", "http://localhost:{}/v1"),
            ("0.0.0.0", "http://127.0.0.1:{}/v1"),
            ("::1", "http://[::1]:{}/v1"),
            ("::", "http://[::1]:{}/v1"),
        ],
    )
    def test_names_and_addresses(self, host: str, url: str) -> None:
        settings = Settings(host=host, port=0)
        with listen(settings) as listener:
            listener.listen()
            port = listener.getsockname()[1]
            assert base_url(settings, listener) == url.format(port)
            # Both are reached by IPv4 too.
            reached = "127.0.0.1" if host in ("localhost", "::") else None
            if reached is not None:
                socket.create_connection((reached, port), 2).close()

    @pytest.mark.parametrize("host", ["nowhere.invalid", "no such name", "1.2.3.4.5", "a" * 300, "ü" * 80])
    def test_unknown(self, host: str) -> None:
        with pytest.raises(StartupError, match="neither an address nor a name"):
            listen(Settings(host=host, port=0))

    def test_taken_and_foreign(self) -> None:
        with listen(Settings(port=0)) as listener:
            listener.listen()
            with pytest.raises(StartupError, match="another server"):
                listen(Settings(port=listener.getsockname()[1]))
        with pytest.raises(StartupError, match=r"203\.0\.113\.1"):
            listen(Settings(host="203.0.113.1", port=0))
