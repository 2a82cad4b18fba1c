"""Refuses requests while the model loads, while the server drains, and when its engine is lost.

Requests that are let in count as open until their last byte is sent; the drain waits for them.
"""

from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_api.errors import Draining, EngineStopped, ErrorCode, Unavailable
from llava_api.server.error_handlers import error_response
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.state import exchange_of

LOADING = "The model is still loading: try again in a moment."
STOPPING = "The server is shutting down: send your request again in a moment; another server may answer it."
LOST = "The engine has stopped and the server ends: send your request again in a moment."


def refusal(lifecycle: Lifecycle, loaded: bool) -> Unavailable | None:
    """The reason why no request can be taken now; None if one can."""
    if lifecycle.failure is not None:
        return EngineStopped(LOST)
    if lifecycle.draining:
        return Draining(STOPPING)
    if not loaded:
        return Unavailable(LOADING, code=ErrorCode.MODEL_NOT_READY)
    return None


class Availability:
    """``open_paths`` are answered at all times, and do not count as open requests."""

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, is_loaded: Callable[[], bool], open_paths: Collection[str]
    ) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.is_loaded = is_loaded
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        refused = refusal(self.lifecycle, self.is_loaded())
        if refused is not None:
            # The next attempt must not come over this connection: a load balancer may have another server for it.
            await error_response(refused, {"connection": "close"})(scope, receive, send)
            return
        self.lifecycle.request_opened()
        exchange_of(scope).callback(self.lifecycle.request_closed)
        await self.app(scope, receive, send)
