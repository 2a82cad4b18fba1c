"""Start and stop: the engine is loaded before the first request, and at the end everything is given back."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI

from llava_api.chat.model import ServedModel
from llava_api.engine.base import Engine
from llava_api.limits.keys import KeyRing
from llava_api.server.app import Lifespan
from llava_api.server.services import open_services
from llava_api.settings import Settings

log = logging.getLogger(__name__)

KEYS_SECONDS = 2.0


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


async def watch_keys(keys: KeyRing) -> None:
    """Read the keys again every other second; the files are small, and Kubernetes changes them by swapping links."""
    while True:
        await asyncio.sleep(KEYS_SECONDS)
        await asyncio.to_thread(keys.refresh)


def make_lifespan(
    model: ServedModel,
    settings: Settings,
    keys: KeyRing,
    load_engine: Callable[[], Awaitable[Engine]],
    on_ready: Callable[[], None],
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
        watching = asyncio.create_task(watch_keys(keys))
        on_ready()
        try:
            yield
        finally:
            watching.cancel()
            await services.close()
            await engine.shutdown()

    return lifespan
