"""The image's health check, run as Docker runs it, against servers that answer this and that."""

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

HEALTH = Path(__file__).parents[2] / "packaging" / "image" / "health.py"


class UnixServer(socketserver.UnixStreamServer):
    def get_request(self) -> tuple[object, object]:
        connection, _ = super().get_request()
        # BaseHTTPRequestHandler wants to write down who asked.
        return connection, ("unix", 0)


def handler(status: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def answering(status: int, path: Path | None = None) -> Iterator[str]:
    """The port."""
    answers = handler(status)
    with HTTPServer(("127.0.0.1", 0), answers) if path is None else UnixServer(str(path), answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield str(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def health(**settings: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_")}
    environment |= {f"LLAVA_{name}": value for name, value in settings.items()}
    return subprocess.run([sys.executable, "-IS", HEALTH], env=environment, capture_output=True, timeout=30).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_the_servers_answer_decides(status: int, code: int) -> None:
    with answering(status) as port:
        assert health(HOST="0.0.0.0", PORT=port) == code


def test_nobody_answers() -> None:
    with answering(200) as port:
        pass
    assert health(PORT=port) == 1


def test_the_metrics_port_is_asked_where_there_is_one() -> None:
    with answering(200) as metrics, answering(503) as main:
        assert health(PORT=main, METRICS_PORT=metrics, METRICS_HOST="0.0.0.0") == 0
        assert health(PORT=metrics, METRICS_PORT=main) == 1


def test_a_unix_socket(tmp_path: Path) -> None:
    assert health(UNIX_SOCKET=str(tmp_path / "s")) == 1
    with answering(200, tmp_path / "s"):
        assert health(UNIX_SOCKET=str(tmp_path / "s")) == 0


def test_settings_that_make_no_sense_are_no_traceback() -> None:
    assert health(PORT="many") == 1
