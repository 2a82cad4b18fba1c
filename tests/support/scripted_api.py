"""An OpenAI-compatible API in a thread that answers as a question tells it to, and remembers what it was sent."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ("tiny", "other")
KEY = "sk-a-key-of-this-test"
REFUSAL = {"message": "The image cannot be read.", "type": "invalid_request_error", "code": "invalid_image"}
MOST_PIECES = 3000


class ScriptedApi:
    """What a question may be: ``slow`` (pieces without end), ``refuse``, ``busy``, ``break`` (the stream ends in its
    midst), ``fail`` (an error in the stream), ``long`` (cut by length), ``odd`` (``odd_event`` at its end); else the
    answer is ``said``.
    """

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.said = "A red circle."
        self.odd_event: Any = None
        self.needs_key = False
        self.has_list = True
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hung_up = threading.Event()
        """Somebody went away before the answer was over."""


def question_of(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ScriptedApi

    def log_message(self, *ignored: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/page":
            self.send(200, b"<html>hello</html>", "text/html")
        elif self.path != "/v1/models" or not self.api.has_list:
            self.send(404, b"<html>nothing here</html>", "text/html")
        elif self.api.needs_key and self.headers.get("authorization") != f"Bearer {KEY}":
            self.refuse(401, {"message": "Wrong API key.", "code": "invalid_api_key"})
        else:
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in MODELS]
            self.send(200, json.dumps({"object": "list", "data": listed}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.api.requests.append(request)
        self.api.headers.append({name.lower(): value for name, value in self.headers.items()})
        question = question_of(request)
        if question == "refuse":
            self.refuse(400, REFUSAL)
        elif question == "busy":
            self.refuse(503, {"message": "Come \x1b[31magain\x9b\n later.", "code": "server_busy"})
        else:
            self.stream(question)

    def refuse(self, status: int, error: dict[str, Any]) -> None:
        self.send(status, json.dumps({"error": {"param": None, "type": "server_error", **error}}).encode())

    def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        # So that the client does not wait to ask again.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def stream(self, question: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self.write_answer(question)
        except OSError:
            self.api.hung_up.set()

    def write_answer(self, question: str) -> None:
        if question == "slow":
            for number in range(MOST_PIECES):
                self.chunk({"content": f"word{number} "})
                time.sleep(0.02)
            return
        for letter in (self.api.said[:4], self.api.said[4:]):
            self.chunk({"content": letter})
        if question == "odd":
            self.event(self.api.odd_event)
        if question in ("break", "odd"):
            return
        if question == "fail":
            self.event({"error": {"message": "The engine could not answer.", "code": "engine_failed"}})
            return
        self.chunk({}, "length" if question == "long" else "stop")
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        self.event({**self.frame(), "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def frame(self) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> None:
        self.event({**self.frame(), "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()


@contextmanager
def scripted_api() -> Iterator[ScriptedApi]:
    class Bound(Handler):
        pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients hang up as they like; a mistake of this file's is seen by the test that gets no answer."""

    with Server(("127.0.0.1", 0), Bound) as server:
        Bound.api = ScriptedApi(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Bound.api
        finally:
            server.shutdown()
            thread.join()


def closed_port() -> int:
    """Where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
