"""A second port for machines inside a cluster: only ``/metrics`` and ``/health``, without API keys.

It has the main port's limits on what a client may send, and how slowly, because clients of this port must not use up
the server's memory or keep the probes out.

It runs in the main server's process and event loop, from before the model is loaded until after the last answer.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from starlette.applications import Starlette

from llava_api.server import error_handlers
from llava_api.server.connections import ConnectionLimit
from llava_api.server.endpoint import routes_of
from llava_api.server.http_server import make_config
from llava_api.server.middleware.exchange import ExchangeMiddleware
from llava_api.server.routes import probes
from llava_api.server.state import set_state, state_of
from llava_api.settings import Settings

MAX_CONNECTIONS = 64


class SideServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the main server."""
        yield


@asynccontextmanager
async def side_port(main: Starlette, listener: socket.socket | None, settings: Settings) -> AsyncIterator[None]:
    """Show the health and the metrics of ``main`` at ``listener``, a bound socket, until the end of the block.

    None means no second port.
    """
    if listener is None:
        yield
        return
    app = Starlette(routes=routes_of(probes.ENDPOINTS))
    app.router.redirect_slashes = False
    app.add_middleware(ExchangeMiddleware)
    error_handlers.install(app)
    set_state(app, state_of(main))
    config = make_config(
        app,
        settings,
        lifespan="off",
        count_refusal=state_of(main).metrics.reject,
        connection_limit=ConnectionLimit(MAX_CONNECTIONS),
    )
    server = SideServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await serving
