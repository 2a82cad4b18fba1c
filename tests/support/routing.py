"""Servers with scripted engines on real sockets, and a router before them."""

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from llava_api.chat.model import open_model
from llava_api.errors import Unavailable
from llava_api.limits.keys import KeyRing
from llava_api.routing.backends import Backend, BackendLost, Wanted
from llava_api.routing.connections import Connections
from llava_api.routing.proxy import Router, router_app
from llava_api.server.app import create_app
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.services import Services
from llava_api.settings import Settings
from llava_api.telemetry.router_metrics import RouterMetrics
from tests.support.running_server import RunningServer, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tokenizer import write_checkpoint

SMALL: dict[str, Any] = {"max_body_bytes": 300_000}


@dataclass
class Replica:
    """A server that answers in this process."""

    model: str
    engine: ScriptedEngine
    app: Starlette
    backend: Backend
    running: RunningServer | None = None
    killed: bool = False

    def kill(self) -> None:
        """As when its process is killed: its connections end, and no new one is accepted."""
        assert self.running is not None
        self.killed = True
        for server in self.running.server.servers:
            server.close()
        for connection in self.running.server.server_state.connections:
            connection.transport.real.abort()

    @property
    def asked(self) -> int:
        return len(self.engine.requests)


@asynccontextmanager
async def replica(folder: Path, model: str, number: int = 0, **chosen: Any) -> AsyncIterator[Replica]:
    settings = Settings.model_validate(SMALL | chosen)
    served = open_model(str(write_checkpoint(folder / f"{model}-{number}", None)), (model,), settings)
    engine = ScriptedEngine()
    services = Services(settings, served, engine)
    app = create_app(settings, KeyRing(settings), services)
    async with serve_app(app) as running:
        unix = settings.unix_socket is not None
        address = f"unix:{running.address}" if unix else f"http://127.0.0.1:{running.address[1]}"
        yield Replica(model, engine, app, Backend(f"{model}-{number}", address), running)
    await services.close()


@dataclass
class FixedBackends:
    """Backends in the order of the list, of which each gets all requests until it is lost."""

    replicas: list[Replica]
    lost: list[str] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    complete: bool = True
    metrics: RouterMetrics = field(default_factory=lambda: RouterMetrics({"llava-api": "1"}))
    connections: Connections = field(default_factory=lambda: Connections(Settings()))

    def models(self) -> list[dict[str, Any]]:
        names = dict.fromkeys(replica.model for replica in self.replicas)
        return [
            {"id": name, "object": "model", "created": 1, "owned_by": "llava-api", "status": "ready"} for name in names
        ]

    def running(self) -> list[Backend]:
        return [replica.backend for replica in self.replicas]

    @asynccontextmanager
    async def place(self, wanted: Wanted, tried: Collection[Backend]) -> AsyncIterator[Backend]:
        self.wanted.append(wanted)
        left = [one.backend for one in self.replicas if one.model == wanted.model and one.backend not in tried]
        if not left:
            raise Unavailable("No server is left.")
        try:
            yield wanted.keeper or left[0]
        except BackendLost:
            self.lost.append(left[0].name)
            raise


@asynccontextmanager
async def routed(backends: Any, **chosen: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Router]]:
    """A client of a router before ``backends``, and the router."""
    settings = Settings.model_validate(SMALL | chosen)
    router = Router(settings, backends, Lifecycle())
    router.state.loaded = True
    async with AsyncExitStack() as at_end:
        at_end.push_async_callback(router.connections.close)
        running = await at_end.enter_async_context(serve_app(router_app(router, KeyRing(settings)), settings=settings))
        host, port = running.address[:2]
        yield await at_end.enter_async_context(httpx.AsyncClient(base_url=f"http://{host}:{port}")), router
