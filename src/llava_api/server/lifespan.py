"""Start and stop: the engine is loaded before the first request, and at the end everything is given back."""

import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI

from llava_api.chat.model import ServedModel
from llava_api.engine.base import Engine
from llava_api.server.app import Lifespan
from llava_api.server.services import open_services
from llava_api.settings import Settings

log = logging.getLogger(__name__)


@contextmanager
def heartbeat(what: str, every_seconds: float = 10.0) -> Iterator[None]:
    """Say on the terminal that ``what`` goes on; loading blocks the event loop, so a thread does it."""
    started = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(every_seconds):
            log.info("%s ... %.0f s", what, time.monotonic() - started)

    log.info("%s ...", what)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
        log.info("%s: done in %.1f s", what, time.monotonic() - started)
    finally:
        done.set()
        thread.join()


def make_lifespan(
    model: ServedModel, settings: Settings, load_engine: Callable[[], Awaitable[Engine]], on_ready: Callable[[], None]
) -> Lifespan:
    """The lifespan of a serving process; ``load_engine`` runs inside the event loop that the engine will use."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with heartbeat("loading the engine and the checkpoint"):
            engine = await load_engine()
        services = app.state.services = open_services(settings, model, engine)
        # What is there now stays: a full collection would look through all of torch and vLLM, for a tenth of a second.
        gc.collect()
        gc.freeze()
        on_ready()
        try:
            yield
        finally:
            await services.close()
            await engine.shutdown()

    return lifespan
