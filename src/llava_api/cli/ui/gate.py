"""In front of the page: what may be asked of it at all, by whom, and what a browser may do with the answers.

Gradio brings many routes along: a proxy, a file server, endpoints for programs. The page needs a few; nothing else is
answered. A page without a password trusts whoever reaches it, a browser among them, so strange web pages are kept out
as on the server: by the Host header against names that are made to stand for this machine, by Origin against requests
from other pages.
"""

import asyncio
import json
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.web_origins import OriginRules

OPEN = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/[\w./@-]+"
        r"|/gradio_api/(startup-events|theme\.css|queue/data|heartbeat/\w+|upload_progress|file=.+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join/?|cancel|reset/?|upload)"),
}
ENDLESS = re.compile(r"/gradio_api/(queue/data|heartbeat/\w+)")
UPLOAD = "/gradio_api/upload"
SESSION = re.compile(r"[A-Za-z0-9]{1,64}")
"""How a page calls itself. Gradio keeps the names of all pages that there ever were."""
MAX_BODY_BYTES = 2_000_000
"""Of a question without its pictures, which are uploaded before."""
POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",
        # Gradio's page begins with scripts of its own, in the page itself.
        "script-src 'self' 'unsafe-inline'",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
WRONG_HOST = "This page does not know the name it was asked by. Whoever runs it can list the name with --allowed-hosts."
WRONG_ORIGIN = "This page takes no requests from other web pages."
WRONG_FILE = "A message names a file that was not added to it."


class Gate:
    """Only what the page needs, from where it is needed."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], known_file: Callable[[str], object]) -> None:
        """``hosts``: names besides IP addresses and names without a dot. ``known_file``: of paths, falsy if strange."""
        self.app = app
        self.rules = OriginRules(hosts)
        self.known_file = known_file
        self.closing = asyncio.Event()
        """Set when the program ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await PlainTextResponse("", 403)(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self.refusal(scope)
        if refusal is None and scope["method"] == "POST" and scope["path"] != UPLOAD:
            body, refusal = await self.read_body(receive)
            receive = replayed(body, receive)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
        elif ENDLESS.fullmatch(scope["path"]):
            await self.until_closing(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)

    async def until_closing(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An open page holds its streams for ever: they end with the program."""
        ended = False

        async def watched(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        answering = asyncio.ensure_future(self.app(scope, receive, watched))
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait({answering, closing}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            closing.cancel()
            if not answering.done():
                answering.cancel()
                with suppress(asyncio.CancelledError):
                    await answering
                if not ended:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    def refusal(self, scope: Scope) -> Response | None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        broken = self.rules.broken_rule(scope)
        if broken in ("one host", "known host"):
            return PlainTextResponse(WRONG_HOST, 403)
        if method not in OPEN or not OPEN[method].fullmatch(scope["path"]) or ".." in scope["path"]:
            return PlainTextResponse("There is nothing here.", 404)
        return PlainTextResponse(WRONG_ORIGIN, 403) if broken else None

    async def read_body(self, receive: Receive) -> tuple[bytes, Response | None]:
        """The body of a request that asks for something to be done; every file that it names must be an upload."""
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
            strangers = [path for path in paths_in(content) if not self.known_file(path)]
            named = not isinstance(content, dict) or SESSION.fullmatch(content.get("session_hash") or "none")
        except (ValueError, TypeError, RecursionError):
            return b"", JSONResponse({"detail": "This is no JSON that the page sends."}, 400)
        if not named:
            return b"", JSONResponse({"detail": "No page is called so."}, 400)
        return bytes(body), JSONResponse({"detail": WRONG_FILE}, 403) if strangers else None


def paths_in(content: Any) -> list[str]:
    """All that stands under a key ``path``, at any depth."""
    found: list[str] = []
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if "path" in part:
                found.append(str(part["path"]))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body once more, then whatever comes behind it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
