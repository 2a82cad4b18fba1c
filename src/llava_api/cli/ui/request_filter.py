"""Refuses what the page does not need: other routes, other pages' requests, files that were not added, long bodies.

Gradio brings many routes along, such as a proxy, a file server and endpoints for programs. And the page has no
password, so it needs the rules of ``web_origins`` against other web pages.
"""

import json
import re
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.web_origins import OriginRules

ROUTES = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/[\w./@-]+"
        r"|/gradio_api/(startup-events|theme\.css|queue/data|heartbeat/\w+|upload_progress|file=.+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join/?|cancel|reset/?|upload)"),
}
UPLOAD = "/gradio_api/upload"
PAGE_NAME = re.compile(r"[A-Za-z0-9]{1,64}")
"""Gradio's session_hash, by which a page names itself. Gradio keeps the names of all pages that there ever were."""
MAX_BODY_BYTES = 2_000_000
"""For a question without its images, which are uploaded before."""
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    # Gradio's page begins with inline scripts.
    "script-src 'self' 'unsafe-inline'; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
WRONG_HOST = "This page does not know the name in the Host header. The operator can list it with --allowed-hosts."
WRONG_ORIGIN = "This page takes no requests from other web pages."
WRONG_FILE = "A message names a file that was not added to it."


class RequestFilter:
    def __init__(self, app: ASGIApp, hosts: Collection[str], is_upload: Callable[[str], object]) -> None:
        """``hosts``: names of the page besides those that are always safe. ``is_upload``: whether a path is one."""
        self.app = app
        self.rules = OriginRules(hosts)
        self.is_upload = is_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await PlainTextResponse("", 403)(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self.refusal(scope)
        if refusal is None and scope["method"] == "POST" and scope["path"] != UPLOAD:
            body, refusal = await self.read_body(receive)
            receive = replayed(body, receive)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> Response | None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        broken = self.rules.broken_rule(scope)
        if broken in ("one host", "known host"):
            return PlainTextResponse(WRONG_HOST, 403)
        if method not in ROUTES or not ROUTES[method].fullmatch(scope["path"]) or ".." in scope["path"]:
            return PlainTextResponse("There is nothing here.", 404)
        return PlainTextResponse(WRONG_ORIGIN, 403) if broken else None

    async def read_body(self, receive: Receive) -> tuple[bytes, Response | None]:
        """The body of an event, or why it is refused."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"", PlainTextResponse("", 400)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                return b"", JSONResponse({"detail": "The question is too long."}, 413)
        try:
            content = json.loads(body)
            all_uploaded = all(self.is_upload(path) for path in paths_in(content))
            has_name = not isinstance(content, dict) or PAGE_NAME.fullmatch(content.get("session_hash") or "none")
        except (ValueError, TypeError, RecursionError):
            return b"", JSONResponse({"detail": "The page does not send such JSON."}, 400)
        if not has_name:
            return b"", JSONResponse({"detail": "A session_hash is 1 to 64 letters and digits."}, 400)
        return bytes(body), None if all_uploaded else JSONResponse({"detail": WRONG_FILE}, 403)


def paths_in(content: Any) -> list[str]:
    """Every value with the key ``path``, at any depth."""
    found: list[str] = []
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "path" in part:
                found.append(str(part["path"]))
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return found


def replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that has been read once more."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
