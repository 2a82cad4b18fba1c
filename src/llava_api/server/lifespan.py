"""Start and stop: the port answers at once while the engine is loaded, and at the end everything is closed."""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from llava_api.chat.model import ServedModel
from llava_api.engine.supervisor import Start, SupervisedEngine
from llava_api.limits.account import RateLimiter
from llava_api.limits.keys import KeyRing
from llava_api.server.app import Lifespan
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.services import Services
from llava_api.server.side_port import side_port
from llava_api.server.state import state_of
from llava_api.server.tls import Certificates
from llava_api.server.warm_up import warm_up
from llava_api.settings import Settings

log = logging.getLogger(__name__)

WATCH_SECONDS = 2.0
LOADING = "loading the engine and the checkpoint"


async def log_progress(what: str, every_seconds: float = 10.0) -> None:
    """Log regularly that ``what`` goes on."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(every_seconds)
        log.info("%s ... %.0f s", what, time.monotonic() - started)


async def watch_files(refreshes: Sequence[Callable[[], None]]) -> None:
    """Read keys, limits and certificates again every two seconds. The files are small."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        for refresh in refreshes:
            try:
                await asyncio.to_thread(refresh)
            except Exception:
                # A key that was removed must not stay valid because reading failed once.
                log.exception("files could not be read again; the next try is in %g s", WATCH_SECONDS)


@asynccontextmanager
async def tracing(app: FastAPI) -> AsyncIterator[None]:
    """Send the remaining traces at the end."""
    try:
        yield
    finally:
        traces = state_of(app).tracing
        if traces is not None:
            await asyncio.to_thread(traces.close)


def nothing() -> None:
    """A hook that is not used."""


@dataclass(frozen=True, slots=True)
class LifespanHooks:
    """Functions that the lifespan calls."""

    on_ready: Callable[[], None] = nothing
    abandon_load: Callable[[], None] = nothing
    """Ends a load at once."""
    on_end: Callable[[], None] = nothing
    """Called when the port may be closed."""


def make_lifespan(
    model: ServedModel,
    settings: Settings,
    keys: KeyRing,
    limiter: RateLimiter,
    lifecycle: Lifecycle,
    start: Start,
    hooks: LifespanHooks,
    side_listener: socket.socket | None = None,
    certificates: Certificates | None = None,
) -> Lifespan:
    """The lifespan of a serving process.

    ``side_listener``: a bound socket on which metrics and health are answered from start to end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with side_port(app, side_listener, settings), tracing(app), serving(app):
            yield

    @asynccontextmanager
    async def serving(app: FastAPI) -> AsyncIterator[None]:
        engines: list[SupervisedEngine] = []

        async def load() -> SupervisedEngine:
            log.info("%s ...", LOADING)
            logging_progress = asyncio.create_task(log_progress(LOADING))
            started = time.monotonic()
            try:
                engine = await SupervisedEngine.open(start, settings)
            finally:
                logging_progress.cancel()
            log.info("%s: done in %.1f s", LOADING, time.monotonic() - started)
            engines.append(engine)
            metrics = state_of(app).metrics
            engine.count_restart = metrics.engine_restarts.inc
            services = Services(settings, model, engine, metrics=metrics, limiter=limiter)
            await warm_up(services)
            state_of(app).services = services
            # These objects stay. Without this, a full collection looks through all of torch and vLLM, which takes a
            # tenth of a second.
            gc.collect()
            gc.freeze()
            hooks.on_ready()
            return engine

        async def live() -> None:
            try:
                await lifecycle.run(load, hooks.abandon_load)
            finally:
                hooks.on_end()

        refreshes = [keys.refresh, limiter.table.refresh]
        if certificates is not None:
            refreshes.append(certificates.refresh)
        living, watching = asyncio.create_task(live()), asyncio.create_task(watch_files(refreshes))
        try:
            yield
        finally:
            watching.cancel()
            living.cancel()
            await asyncio.gather(living, watching, return_exceptions=True)
            services = state_of(app).services
            if services is not None:
                await services.close()
            for engine in engines:
                await engine.shutdown()

    return lifespan
