"""Opens the exchange of each request, closes it when the answer ends, and sets the headers that every answer has."""

import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.server.dialects import request_id_headers
from llava_api.server.exchange import Exchange
from llava_api.server.state import begin_exchange


class ExchangeMiddleware:
    """Sets ``x-request-id``, which is made here and never taken from the client, and what is left of rate limits."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, f"req_{uuid.uuid4().hex}")
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
