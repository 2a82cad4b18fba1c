"""The states of a server: it loads, is ready, drains and ends. It only counts the open requests."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from llava_api.errors import EngineLost, StartupError

log = logging.getLogger(__name__)

LAST_ANSWERS_SECONDS = 3.0
"""Time for the last error events and 503s to be sent, and for a probe to see that the server is no longer live."""


def do_nothing() -> None:
    pass


class Supervised(Protocol):
    """What a server answers with: its engine, or a router's backends."""

    async def supervise(self) -> str:
        """Returns when it is lost, with the reason."""

    def abandon(self) -> None:
        """End the open requests with an error."""


class Lifecycle:
    """``abandon_load`` ends the process: a load cannot be waited for, nor stopped. ``on_end``: close the port."""

    def __init__(
        self,
        drain_timeout_seconds: float = 0.0,
        *,
        on_ready: Callable[[], None] = do_nothing,
        abandon_load: Callable[[], None] = do_nothing,
        on_end: Callable[[], None] = do_nothing,
    ) -> None:
        self.drain_timeout_seconds = drain_timeout_seconds
        self.on_ready = on_ready
        self.abandon_load = abandon_load
        self.on_end = on_end
        self.draining = False
        """Set by the first signal: no new requests, the open ones go on."""
        self.failure: StartupError | None = None
        """Why the server ends, if it was not asked to."""
        self.open_requests = 0
        self.no_open_requests = asyncio.Event()
        self.no_open_requests.set()
        self.stop_asked = asyncio.Event()
        self.stop_now = asyncio.Event()

    def request_opened(self) -> None:
        self.open_requests += 1
        self.no_open_requests.clear()

    def request_closed(self) -> None:
        self.open_requests -= 1
        if not self.open_requests:
            self.no_open_requests.set()

    def stop(self) -> None:
        """Called on a signal: the first time the server drains, the second time it ends at once."""
        if self.stop_asked.is_set():
            self.stop_now.set()
        self.stop_asked.set()

    async def run(self, load: Callable[[], Coroutine[Any, Any, Supervised]]) -> None:
        """Run from loading until the port may be closed."""
        try:
            await self.load_and_serve(load)
        finally:
            self.on_end()

    async def load_and_serve(self, load: Callable[[], Coroutine[Any, Any, Supervised]]) -> None:
        loading = asyncio.create_task(load())
        await first_of(loading, asyncio.create_task(self.stop_asked.wait()), keep=loading)
        if not loading.done():
            log.info("asked to stop while loading")
            self.abandon_load()
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return
        try:
            engine = loading.result()
        except StartupError as error:
            self.failure = error
            return
        except Exception as error:
            self.failure = unforeseen("the model could not be loaded", error)
            return
        supervising = asyncio.create_task(engine.supervise())
        try:
            await first_of(supervising, asyncio.create_task(self.stop_asked.wait()), keep=supervising)
            if supervising.done():
                await self.fail(engine, supervising)
            else:
                await self.drain(engine, supervising)
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)

    async def fail(self, engine: Supervised, supervising: "asyncio.Task[str]") -> None:
        try:
            self.failure = EngineLost(f"the engine was lost: {supervising.result()}")
        except Exception as error:
            self.failure = unforeseen("the engine is no longer supervised", error)
            engine.abandon()
        await asyncio.sleep(LAST_ANSWERS_SECONDS / 2)
        await self.until_requests_ended(LAST_ANSWERS_SECONDS)

    async def drain(self, engine: Supervised, supervising: "asyncio.Task[str]") -> None:
        self.draining = True
        if self.open_requests:
            log.info(
                "stopping: %d open requests may go on for %g s; a second signal ends them",
                self.open_requests,
                self.drain_timeout_seconds,
            )
        else:
            log.info("stopping")
        requests_end = asyncio.create_task(self.no_open_requests.wait())
        second_signal = asyncio.create_task(self.stop_now.wait())
        await first_of(requests_end, second_signal, supervising, keep=supervising, seconds=self.drain_timeout_seconds)
        if self.open_requests:
            log.warning("ending %d open requests", self.open_requests)
            supervising.cancel()
            engine.abandon()
            await self.until_requests_ended(LAST_ANSWERS_SECONDS)

    async def until_requests_ended(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.no_open_requests.wait(), seconds)


def unforeseen(what: str, error: Exception) -> StartupError:
    """A bug of ours or vLLM's is logged with its traceback, and ends the process with an error status."""
    log.error("unforeseen: %s", what, exc_info=error)
    return StartupError(f"{what} ({type(error).__name__}: {error}); the lines above say where")


async def first_of(*tasks: "asyncio.Task[Any]", keep: "asyncio.Task[Any]", seconds: float | None = None) -> None:
    """Returns when one of them is done, or after ``seconds``; cancels the others but ``keep``."""
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task is not keep:
            task.cancel()
