"""Who comes in: nobody while the model loads, while the server drains, or when its engine is gone.

A request that came in is counted until its last byte has gone: the drain waits for it.
"""

from collections.abc import Collection

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_api.errors import Draining, EngineStopped, NotReady, Unavailable
from llava_api.server.error_handlers import error_response
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.services import Services

LOADING = "The model is still loading: try again in a moment."
STOPPING = "The server is shutting down: send your request again in a moment; another server may answer it."
LOST = "The engine has stopped and the server ends: send your request again in a moment."


def refusal(life: Lifecycle, services: Services | None) -> Unavailable | None:
    """Why no request can be taken now; None where it can."""
    if life.failure is not None:
        return EngineStopped(LOST)
    if life.draining:
        return Draining(STOPPING)
    if services is None:
        return NotReady(LOADING)
    return None


class Gate:
    """``open_paths`` are answered at all times, and not counted."""

    def __init__(self, app: ASGIApp, root: FastAPI, life: Lifecycle, open_paths: Collection[str]) -> None:
        self.app = app
        self.root = root
        self.life = life
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        refused = refusal(self.life, self.root.state.services)
        if refused is not None:
            # The next try must not come over this connection: a balancer may have another server for it.
            await error_response(refused, {"connection": "close"})(scope, receive, send)
            return
        self.life.request_opened()
        try:
            await self.app(scope, receive, send)
        finally:
            self.life.request_closed()
