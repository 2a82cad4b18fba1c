"""An engine that is supervised: a dead or hanging engine is noticed, and with ``--restart-engine`` started again.

To the rest of the server it is an ``Engine`` like any other. A request that had not produced a token when the engine
was lost runs once more on the next engine, unnoticed by its caller. One that had produced tokens ends with
EngineStopped.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from llava_api.engine.base import Adapter, Delta, EngineProcesses, GenerationRequest
from llava_api.engine.cpu_plan import STALL_SECONDS
from llava_api.errors import EngineStopped, ErrorCode, StartupError
from llava_api.settings import Settings
from llava_api.telemetry.record import Loss

log = logging.getLogger(__name__)

GONE = "The engine has stopped while it worked on your request: send it again in a moment."
RESTARTING = "The engine is being started again: send your request again in a moment."
CLOSING = "The server is shutting down: send your request again in a moment."
CHECK_SECONDS = 0.5
"""Time between two checks of the engine, each of which takes microseconds."""
PAUSED_CHECKS = 3
"""Consecutive checks that must find it paused: a terminal's Ctrl-Z and fg pause this process too, which is no fault."""
STREAM_END_SECONDS = 2.0
"""How long streams may take to end after their engine was killed."""
STABLE_SECONDS = 600.0
"""An engine that has run this long resets the count of restarts."""
LONGEST_PAUSE_SECONDS = 30.0

Start = Callable[[], Awaitable[EngineProcesses]]


class SupervisedEngine:
    """``start`` has loaded the engine ``first`` and can load others. ``supervise`` must run beside the requests."""

    def __init__(self, first: EngineProcesses, start: Start, settings: Settings) -> None:
        self.start = start
        self.restart_limit = settings.max_engine_restarts if settings.restart_engine else 0
        self.stall_seconds = settings.engine_stall_seconds or STALL_SECONDS
        self.max_model_len = first.max_model_len
        self.max_num_seqs = first.max_num_seqs
        self.engine = first
        self.running: asyncio.Future[EngineProcesses] = asyncio.get_running_loop().create_future()
        """The running engine: pending while there is none, EngineStopped once there will be no other."""
        self.running.set_result(first)
        self.closing = False
        self.waiting = 0
        """Streams that are waiting for their next token."""
        self.last_progress = time.monotonic()
        self.restarts_in_a_row = 0
        self.count_restart: Callable[[], None] = lambda: None
        """Called for each restart, including failed ones."""
        self.note_loss: Callable[[Loss], None] = lambda why: None
        """Called when the engine is lost."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        # Twice at most: the request may be what broke the engine.
        for last in (not self.restart_limit, True):
            engine = await asyncio.shield(self.running)
            silent = True
            try:
                async with aclosing(engine.generate(request)) as stream:
                    while True:
                        # Only here is the engine waited for: a reader that does not read is no fault of the engine.
                        if not self.waiting:
                            self.last_progress = time.monotonic()
                        self.waiting += 1
                        try:
                            delta = await anext(stream)
                        except StopAsyncIteration:
                            return
                        finally:
                            self.waiting -= 1
                            self.last_progress = time.monotonic()
                        silent = False
                        yield delta
            except EngineStopped as error:
                if last or not silent:
                    raise self.stopped_error() from error
                self.await_another(engine)

    def await_another(self, lost: EngineProcesses) -> None:
        """A request may know of the loss before the supervisor does, or when there will be no other any more."""
        if self.engine is lost and self.usable():
            self.running = asyncio.get_running_loop().create_future()

    def usable(self) -> bool:
        return self.running.done() and self.running.exception() is None

    async def load_adapter(self, adapter: Adapter) -> None:
        await self.unless_lost(lambda engine: engine.load_adapter(adapter))

    async def remove_adapter(self, adapter: Adapter) -> None:
        await self.unless_lost(lambda engine: engine.remove_adapter(adapter))

    async def unless_lost(self, call: Callable[[EngineProcesses], Coroutine[Any, Any, None]]) -> None:
        """Raises EngineStopped if the engine is lost meanwhile: vLLM would let the caller wait for ever."""
        engine = await asyncio.shield(self.running)
        calling = asyncio.create_task(call(engine))
        while not calling.done():
            await asyncio.wait({calling}, timeout=CHECK_SECONDS)
            if not calling.done() and not (self.engine is engine and self.usable()):
                calling.cancel()
                raise self.stopped_error()
        await calling

    async def check_health(self) -> None:
        if not self.running.done():
            raise EngineStopped(RESTARTING, code=ErrorCode.ENGINE_RESTARTING)
        await self.running
        await self.engine.check_health()

    async def shutdown(self) -> None:
        await self.engine.shutdown()

    def abandon(self) -> None:
        """End the engine because the server closes. ``supervise`` must have been stopped."""
        self.closing = True
        self.give_up()
        self.engine.kill()

    async def supervise(self) -> str:
        """Watch until the engine is lost for good; returns why in one sentence."""
        while True:
            began = time.monotonic()
            why, reason = await self.lost()
            self.note_loss(why)
            log.error("the engine is lost: %s", reason)
            self.await_another(self.engine)
            self.engine.kill()
            await self.until_streams_end()
            with suppress(Exception):
                await self.engine.shutdown()
            if time.monotonic() - began > STABLE_SECONDS:
                self.restarts_in_a_row = 0
            if not await self.started_again():
                self.give_up()
                return f"{reason}; --max-engine-restarts is used up" if self.restart_limit else reason

    async def until_streams_end(self) -> None:
        """Wait for vLLM to end its streams: it does so when its processes die, but not after its own shutdown."""
        deadline = time.monotonic() + STREAM_END_SECONDS
        while self.waiting and time.monotonic() < deadline:  # noqa: ASYNC110 - two seconds at most
            await asyncio.sleep(0.02)

    @property
    def silence_seconds(self) -> float:
        """Time since the last token of any answer; 0 if the engine has no work."""
        return time.monotonic() - self.last_progress if self.waiting else 0.0

    async def lost(self) -> tuple[Loss, str]:
        """Returns when the engine is dead, paused or hanging."""
        paused = 0
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.engine.check_health()
            except EngineStopped:
                return "ended", "its process ended"
            paused = paused + 1 if self.engine.paused() else 0
            if paused == PAUSED_CHECKS:
                return "paused", "its process was stopped by a signal and does not go on"
            silence = self.silence_seconds
            if silence > self.stall_seconds:
                return "stalled", f"it has work and produced nothing for {silence:.0f} s (--engine-stall-seconds)"

    async def started_again(self) -> bool:
        while self.restarts_in_a_row < self.restart_limit:
            if self.restarts_in_a_row:
                await asyncio.sleep(min(2.0**self.restarts_in_a_row, LONGEST_PAUSE_SECONDS))
            self.count_restart()
            self.restarts_in_a_row += 1
            log.info("starting the engine again (%d of %d)", self.restarts_in_a_row, self.restart_limit)
            try:
                self.engine = await self.start()
            except StartupError as error:
                log.error("the engine did not start: %s", error)
                continue
            except Exception:
                log.exception("the engine did not start")
                continue
            self.last_progress = time.monotonic()
            self.running.set_result(self.engine)
            log.info("the engine is back")
            return True
        return False

    def give_up(self) -> None:
        if self.running.done():
            self.running = asyncio.get_running_loop().create_future()
        self.running.set_exception(self.stopped_error())
        # Retrieved here, or asyncio would complain if no request waits for it.
        self.running.exception()

    def stopped_error(self) -> EngineStopped:
        return EngineStopped(CLOSING, code=ErrorCode.SERVER_STOPPING) if self.closing else EngineStopped(GONE)
