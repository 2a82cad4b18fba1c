"""What a caller has left, on each answer; and the end of a request's allowance with its answer's last byte.

``server/exchange.py`` makes the allowance: of the requests that have a body, and need work.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.limits.rate import Allowance
from llava_api.server.life import Life


class Allowances:
    """Looks for ``allowance`` and ``life`` in the request's state."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_with_rest(message: Message) -> None:
            allowance: Allowance | None = state.get("allowance")
            if allowance is not None and message["type"] == "http.response.start":
                # A whole answer's tokens are known by now, and are counted before the caller can ask again.
                await allowance.settle()
                rest = [(name.encode(), value.encode()) for name, value in allowance.headers().items()]
                message["headers"] = [*message["headers"], *rest]
            await send(message)

        try:
            await self.app(scope, receive, send_with_rest)
        finally:
            allowance: Allowance | None = state.get("allowance")
            if allowance is not None:
                allowance.leave()
                life: Life | None = state.get("life")
                if life is not None:
                    # A stream whose caller left before its first chunk is only told to end by then, and owes after it.
                    await life.over()
                await allowance.settle()
