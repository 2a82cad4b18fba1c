"""An OpenAI-compatible API in a thread, for tests of clients: it answers as a test says and remembers the requests."""

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ("tiny", "other")
KEY = "sk-a-key-of-this-test"
REFUSALS: dict[str, tuple[int, dict[str, Any]]] = {
    "refuse": (
        400,
        {"message": "The image cannot be read.", "type": "invalid_request_error", "code": "invalid_image"},
    ),
    "busy": (503, {"message": "Come \x1b[31magain\x9b\n later.", "code": "server_busy"}),
}
RETRY_AT_ONCE = {"retry-after-ms": "1"}
"""So that the client does not wait to ask again."""
MAX_PIECES = 3000
POLL_SECONDS = 0.02


class ScriptedApi:
    """The answer is ``said``, unless the last message is one of these words: ``slow`` (pieces without end), ``refuse``,
    ``busy``, ``break`` (the stream breaks off), ``fail`` (an error in the stream), ``long`` (cut by length), ``odd``
    (``odd_event`` at its end).
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.pieces = ["A ", "red ", "circle."]
        """What the answer is streamed in."""
        self.finish_reason = "stop"
        self.held = threading.Event()
        """While it is set, each answer stops after its first piece."""
        self.seconds_between = 0.0
        """Pause between two pieces."""
        self.odd_event: Any = None
        self.refusal: tuple[int, str] | None = None
        """Status and message of every answer to a question."""
        self.refuse_first: Callable[[], tuple[int, dict[str, str]] | None] = lambda: None
        """Called for each question: the status and the headers of a refusal, or None to answer."""
        self.needed_key: str | None = None
        self.has_list = True
        self.requests: list[dict[str, Any]] = []
        """Bodies of all questions."""
        self.headers: list[dict[str, str]] = []
        """Headers of all requests."""
        self.hung_up = threading.Event()
        """Set when a client left before the end of an answer."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def said(self) -> str:
        return "".join(self.pieces)

    @said.setter
    def said(self, text: str) -> None:
        self.pieces = [text[:4], text[4:]]

    @property
    def key(self) -> str:
        """The API key of the last request."""
        return self.headers[-1].get("authorization", "").removeprefix("Bearer ")


def question_of(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ScriptedApi

    def log_message(self, format: str, *ignored: object) -> None:
        pass

    def do_GET(self) -> None:
        self.remember_headers()
        if self.path == "/page":
            self.send(200, b"<html>hello</html>", "text/html")
        elif self.path != "/v1/models" or not self.api.has_list:
            self.send(404, b"<html>nothing here</html>", "text/html")
        elif self.has_key():
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in MODELS]
            self.send(200, json.dumps({"object": "list", "data": listed}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.remember_headers()
        if not self.path.endswith("/chat/completions"):
            self.refuse(404, {"message": "Nothing is here."})
        elif self.has_key():
            self.api.requests.append(request)
            question = question_of(request)
            refused = self.api.refuse_first()
            if refused is not None:
                self.send(refused[0], b'{"error": {"message": "Not now."}}', headers=refused[1])
            elif question in REFUSALS:
                self.refuse(*REFUSALS[question])
            elif self.api.refusal is not None:
                status, message = self.api.refusal
                self.refuse(status, {"message": message})
            elif request.get("stream"):
                self.stream(question)
            else:
                self.answer(question)

    def answer(self, question: str) -> None:
        """Without streaming: the question's own words, so that a test sees which answer belongs to it."""
        time.sleep(self.api.seconds_between)
        message = {"role": "assistant", "content": f" {self.api.said} {question}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.send(200, json.dumps({"object": "chat.completion", "model": "tiny", "choices": [choice]}).encode())

    def remember_headers(self) -> None:
        self.api.headers.append({name.lower(): value for name, value in self.headers.items()})

    def has_key(self) -> bool:
        """Refuses a request without the key that is needed."""
        if self.api.needed_key in (None, self.api.key):
            return True
        self.refuse(401, {"message": "Wrong API key.", "code": "invalid_api_key"})
        return False

    def refuse(self, status: int, error: dict[str, Any]) -> None:
        self.send(status, json.dumps({"error": {"param": None, "type": "server_error", **error}}).encode())

    def send(
        self, status: int, body: bytes, kind: str = "application/json", headers: dict[str, str] = RETRY_AT_ONCE
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
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
        pieces, seconds = self.api.pieces, self.api.seconds_between
        if question == "slow":
            pieces, seconds = [f"word{number} " for number in range(MAX_PIECES)], POLL_SECONDS
        for number, piece in enumerate(pieces):
            if number:
                self.pause(seconds)
            self.chunk({"content": piece})
        if question == "odd":
            self.event(self.api.odd_event)
        if question in ("break", "odd", "slow"):
            return
        if question == "fail":
            self.event({"error": {"message": "The engine could not answer.", "code": "engine_failed"}})
            return
        self.chunk({}, "length" if question == "long" else self.api.finish_reason)
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        self.event({**self.frame(), "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def pause(self, seconds: float) -> None:
        """Between two pieces. Raises ConnectionError if the client has left while the answer was held."""
        while self.api.held.is_set():
            readable, _, _ = select.select([self.connection], [], [], POLL_SECONDS)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionError
        time.sleep(seconds)

    def frame(self) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> None:
        self.event({**self.frame(), "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up as they like; a mistake of this file's is seen by the test that gets no answer."""


@contextmanager
def scripted_api(port: int = 0) -> Iterator[ScriptedApi]:
    class Bound(Handler):
        pass

    with Server(("127.0.0.1", port), Bound) as server:
        Bound.api = ScriptedApi(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_SECONDS})
        thread.start()
        try:
            yield Bound.api
        finally:
            Bound.api.held.clear()
            server.shutdown()
            thread.join()


def closed_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
