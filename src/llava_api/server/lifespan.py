"""Start and stop: the port answers at once while the engine is loaded, and at the end everything is closed."""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI

from llava_api.chat.model import ServedModel
from llava_api.engine.supervisor import Start, SupervisedEngine
from llava_api.limits.account import RateLimiter
from llava_api.limits.keys import KeyRing
from llava_api.server.app import Lifespan
from llava_api.server.batch_requests import start_batches
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.services import Services, publish_model
from llava_api.server.side_port import side_port
from llava_api.server.state import state_of
from llava_api.server.tls import Certificates
from llava_api.server.warm_up import warm_up
from llava_api.settings import Settings
from llava_api.storage.data_folder import DataFolder

log = logging.getLogger(__name__)

WATCH_SECONDS = 2.0
PROGRESS_SECONDS = 10.0
LOADING = "loading the engine and the checkpoint"


async def log_progress() -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        log.info("%s ... %.0f s", LOADING, time.monotonic() - started)


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


def make_lifespan(
    model: ServedModel,
    settings: Settings,
    keys: KeyRing,
    limiter: RateLimiter,
    lifecycle: Lifecycle,
    start: Start,
    side_listener: socket.socket | None = None,
    certificates: Certificates | None = None,
    data: DataFolder | None = None,
) -> Lifespan:
    """The lifespan of a serving process.

    ``side_listener``: a bound socket on which metrics and health are answered from start to end.
    """

    async def load(app: FastAPI, at_end: AsyncExitStack) -> SupervisedEngine:
        log.info("%s ...", LOADING)
        logging_progress = asyncio.create_task(log_progress())
        started = time.monotonic()
        try:
            engine = SupervisedEngine(await start(), start, settings)
        finally:
            logging_progress.cancel()
        at_end.push_async_callback(engine.shutdown)
        log.info("%s: done in %.1f s", LOADING, time.monotonic() - started)
        state = state_of(app)
        metrics = state.metrics
        engine.count_restart = metrics.engine_restarts.inc
        engine.note_loss = metrics.lose_engine
        metrics.engine_silence.set_function(lambda: engine.silence_seconds)
        metrics.engine_stall.set(engine.stall_seconds)
        services = Services(settings, model, engine, metrics=metrics, limiter=limiter, data=data)
        at_end.push_async_callback(services.close)
        if services.data is not None:
            sweeping = asyncio.create_task(services.data.files.sweep())
            at_end.callback(sweeping.cancel)
        await warm_up(services)
        await start_batches(services, keys, lifecycle)
        state.services, state.loaded = services, True
        # These objects stay. Without this, a full collection looks through all of torch and vLLM, which takes a tenth
        # of a second.
        gc.collect()
        gc.freeze()
        lifecycle.on_ready()
        return engine

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        refreshes = [keys.refresh, limiter.table.refresh]
        if certificates is not None:
            refreshes.append(certificates.refresh)
        # Which model it is that loads, and when its certificate ends, is known before the model is loaded.
        publish_model(model, state_of(app).metrics)
        if certificates is not None:
            state_of(app).metrics.publish_certificate(lambda: certificates.expires_at)
        async with side_port(app, side_listener, settings), AsyncExitStack() as at_end:
            tracing = state_of(app).tracing
            if tracing is not None:
                # Sends the remaining traces.
                at_end.push_async_callback(asyncio.to_thread, tracing.close)
            running = asyncio.create_task(lifecycle.run(partial(load, app, at_end)))
            watching = asyncio.create_task(watch_files(refreshes))
            try:
                yield
            finally:
                watching.cancel()
                running.cancel()
                await asyncio.gather(running, watching, return_exceptions=True)

    return lifespan
