"""For tests of the chat page: an OpenAI-compatible API that the test holds in its hand, without ``/v1/explain``."""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ("first-model", "second-model")


class DirectedApi:
    def __init__(self) -> None:
        self.port = 0
        self.pieces: list[str] = ["A ", "red ", "circle."]
        self.finish_reason = "stop"
        self.held = threading.Event()
        """Set, no answer goes on behind its first piece."""
        self.seconds_between = 0.0
        """Of two pieces of an answer."""
        self.needed_key: str | None = None
        self.refusal: tuple[int, str] | None = None
        """Status and message of all answers to questions."""
        self.questions: list[dict[str, Any]] = []
        """Bodies of the questions asked."""
        self.keys: list[str] = []
        """Of all requests: what stood behind Bearer."""
        self.hung_up = threading.Event()
        """Set when somebody left before the end of an answer."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def handler_for(api: DirectedApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def send_json(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, message: str, code: str | None = None) -> None:
            self.send_json(status, {"error": {"message": message, "type": "error", "param": None, "code": code}})

        def may(self) -> bool:
            api.keys.append(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if api.needed_key is None or api.keys[-1] == api.needed_key:
                return True
            self.refuse(401, "A key is needed.", "invalid_api_key")
            return False

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self.refuse(404, "Nothing is here.")
            elif self.may():
                listed = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in MODELS]
                self.send_json(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self.refuse(404, "Nothing is here.")
            elif self.may():
                api.questions.append(body)
                if api.refusal is not None:
                    self.refuse(*api.refusal)
                else:
                    self.answer()

        def answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for number, piece in enumerate(api.pieces):
                if number and not self.wait_until_free():
                    api.hung_up.set()
                    return
                time.sleep(api.seconds_between if number else 0)
                reason = api.finish_reason if number == len(api.pieces) - 1 else None
                self.send_chunk({"index": 0, "delta": {"content": piece}, "finish_reason": reason})
            self.wfile.write(b"data: [DONE]\n\n")

        def wait_until_free(self) -> bool:
            """False where the caller left meanwhile."""
            while api.held.is_set():
                readable, _, _ = select.select([self.connection], [], [], 0.05)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    return False
            return True

        def send_chunk(self, choice: dict[str, Any]) -> None:
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "x", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()

    return Handler


@contextmanager
def directed_api() -> Iterator[DirectedApi]:
    api = DirectedApi()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(api)) as server:
        server.daemon_threads = True
        api.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield api
        finally:
            api.held.clear()
            server.shutdown()
            thread.join()
