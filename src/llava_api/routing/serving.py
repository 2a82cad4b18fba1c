"""Serves a router until a signal ends it: what ``llava-api route`` and ``llava-api fleet`` have in common."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from starlette.applications import Starlette

from llava_api.limits.keys import KeyRing
from llava_api.routing.backends import Backends
from llava_api.routing.connections import Connections
from llava_api.routing.proxy import Router, router_app
from llava_api.server.connections import ConnectionLimit
from llava_api.server.http_server import DrainingServer, make_config
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.lifespan import watch_files
from llava_api.server.listening import room_for_connections
from llava_api.server.side_port import answering, side_app
from llava_api.server.tls import Certificates
from llava_api.settings import Settings
from llava_api.telemetry.router_metrics import RouterMetrics


class ServedBackends(Backends, Protocol):
    metrics: RouterMetrics
    connections: Connections

    async def start(self) -> None:
        """Returns when requests can be taken. Raises StartupError. Cancelled by a signal."""

    async def supervise(self) -> str:
        """Returns when no request will ever be answered again, with the reason; cancelled when the drain has ended."""

    async def close(self) -> None:
        """Ends all connections. No request is open. Called also if ``start`` has failed."""


def serve_router(
    settings: Settings,
    keys: KeyRing,
    backends: ServedBackends,
    listener: socket.socket,
    side_listener: socket.socket | None,
    certificates: Certificates | None,
    on_ready: Callable[[], None],
    on_signal: Callable[[], None],
) -> Lifecycle:
    """Returns when the server has ended; the lifecycle's ``failure`` says why, unless it was asked to."""
    lifecycle = Lifecycle(settings.drain_timeout_seconds, on_ready=on_ready)
    router = Router(settings, backends, backends.connections, lifecycle, backends.metrics)

    class Running:
        """The backends, as the lifecycle sees them."""

        supervise = staticmethod(backends.supervise)
        abandon = staticmethod(router.abandon)

    async def load() -> type[Running]:
        await backends.start()
        router.is_loaded = True
        lifecycle.on_ready()
        return Running

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        refreshes = [keys.refresh, *([certificates.refresh] if certificates is not None else [])]
        probes = side_app(router.probes())
        async with answering(probes, side_listener, settings, backends.metrics.reject), AsyncExitStack() as at_end:
            at_end.push_async_callback(backends.close)
            tasks = [asyncio.create_task(lifecycle.run(load)), asyncio.create_task(watch_files(refreshes))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    config = make_config(
        router_app(router, keys, lifespan),
        settings,
        certificates=certificates,
        count_refusal=backends.metrics.reject,
        # Each open request has a connection to a backend too.
        connection_limit=ConnectionLimit(room_for_connections(2 * settings.max_connections) // 2),
    )
    DrainingServer(config, lifecycle, on_signal).run(sockets=[listener])
    return lifecycle
