"""Opens the exchange of each request, closes it when the answer ends, and sets the headers that every answer has."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.server.dialects import request_id_headers
from llava_api.server.exchange import Exchange
from llava_api.server.state import begin_exchange

MAX_ID_LENGTH = 128
UNSAFE = re.compile(r"[^A-Za-z0-9._:/+=_-]")
"""What could end a log line or a header, or be mistaken for something else in them."""


def callers_id(scope: Scope) -> str:
    """The client's ``x-request-id`` without unsafe characters; "" if there is none."""
    found = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return UNSAFE.sub("", found.decode("latin-1"))[:MAX_ID_LENGTH]


class ExchangeMiddleware:
    """Sets ``x-request-id`` and what is left of rate limits.

    ``takes_request_ids``: the client's ``x-request-id`` is used, as --accept-request-ids says.
    """

    def __init__(self, app: ASGIApp, takes_request_ids: bool = False) -> None:
        self.app = app
        self.takes_request_ids = takes_request_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, callers_id(scope) if self.takes_request_ids else "")
        begin_exchange(scope, exchange)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = request_id_headers(scope["path"], exchange.request_id)
                if exchange.account is not None:
                    # The tokens of a whole answer are known by now; they are counted before the caller can ask again.
                    await exchange.account.settle()
                    headers |= exchange.account.headers()
                added = [(name.encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        async with exchange:
            await self.app(scope, receive, send_with_headers)
