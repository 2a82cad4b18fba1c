"""Which models of a fleet are loaded: on demand, as far as memory and exclusive groups allow.

``step`` is the only place that decides. It runs after everything that may change its decisions.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from llava_api.cli.fleet.child import Child
from llava_api.cli.fleet.models_file import FleetModel
from llava_api.concurrency.admission import queue_full
from llava_api.errors import Draining, ErrorCode, NotLoaded, StartupError, Unavailable

log = logging.getLogger(__name__)

CALM_SECONDS = 600
"""After so long without a crash, the next one counts as the first."""
MOST_DELAY_SECONDS = 30
STOPPING = "The server is stopping."


class State(StrEnum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    """Its last requests go on, new ones wait until it is loaded again."""
    FAILED = "failed"


LOADED = (State.LOADING, State.READY, State.UNLOADING)
"""The states in which memory is taken."""


@dataclass(slots=True, eq=False)
class Member:
    model: FleetModel
    needs: dict[str, float] = field(default_factory=dict)
    """Resource -> how much of it the model takes while it is loaded."""
    state: State = State.UNLOADED
    since: float = 0
    """When the state began."""
    server: Child | None = None
    life: "asyncio.Task[None] | None" = None
    """From the start of its server to the end."""
    leases: int = 0
    """Requests that are at the model."""
    last_used: float = 0
    waiting: "dict[asyncio.Future[None], float]" = field(default_factory=dict)
    """Requests that wait for it -> since when, the oldest first."""
    reason: str = ""
    """Why the latest load failed or its server ended; "" once it is ready."""
    failures: int = 0
    """In a row."""
    retry_at: float = 0
    crashed: bool = False
    """Its server has ended and is started again without a request."""

    @property
    def wanted_since(self) -> float | None:
        return next(iter(self.waiting.values()), self.since if self.crashed else None)


class Fleet:
    """``capacity``: resource -> how much there is; a resource that is not in it has room for everything.

    ``start`` starts a model's server, and raises StartupError. ``on_ready`` is awaited before it gets requests.
    """

    def __init__(
        self,
        members: Sequence[Member],
        capacity: Mapping[str, float],
        start: Callable[[Member], Awaitable[Child]],
        on_ready: Callable[[Member], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = members
        self.capacity = dict(capacity)
        self.start = start
        self.on_ready = on_ready
        self.now = now
        self.stopping = False
        self.judged = True
        """Whether the members' needs are known. Until then one model is loaded at most."""
        self.changed = asyncio.Event()

    def find(self, name: str) -> Member | None:
        return next((member for member in self.members if name in member.model.names), None)

    @asynccontextmanager
    async def lease(self, member: Member, seconds: float | None = None) -> AsyncIterator[Child]:
        """The model's server, once it is ready; it is not unloaded before the end of the block.

        Raises Unavailable if the model cannot be loaded, if it is not within ``seconds``, or if too many wait.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.admit(member)
        except TimeoutError as error:
            reason = f"The model {member.model.name} is still {member.state}: ask again later."
            raise Unavailable(reason, code=ErrorCode.REQUEST_TIMEOUT) from error
        try:
            assert member.server is not None
            yield member.server
        finally:
            self.release(member)

    async def admit(self, member: Member) -> None:
        if self.stopping:
            raise Draining(STOPPING)
        if member.state is State.READY:
            member.leases += 1
            return
        if member.state is State.FAILED and not member.crashed and self.now() < member.retry_at:
            raise self.refusal(member)
        settings = member.model.settings
        if len(member.waiting) >= settings.max_waiting_requests + (settings.max_num_seqs or 1):
            raise queue_full()
        waiter = asyncio.get_running_loop().create_future()
        member.waiting[waiter] = self.now()
        self.changed.set()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(member)
            raise
        finally:
            member.waiting.pop(waiter, None)

    def release(self, member: Member) -> None:
        member.leases -= 1
        member.last_used = self.now()
        self.changed.set()

    async def unload(self, member: Member) -> None:
        """Returns when its server has ended. Requests that are at the model end before."""
        if member.state in (State.READY, State.LOADING):
            self.drain(member, "asked to")
        if member.life is not None and member.state is State.UNLOADING:
            await asyncio.wait({member.life})

    def refusal(self, member: Member) -> NotLoaded:
        """Without the reason, which may name paths and is for the operator."""
        error = NotLoaded(f"The model {member.model.name} could not be loaded; the server's log says why.")
        error.retry_after_seconds = max(1.0, member.retry_at - self.now())
        return error

    async def run(self) -> str:
        """Runs until it is cancelled."""
        while True:
            seconds = self.step()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), seconds)
            self.changed.clear()

    def step(self) -> float | None:
        """Start, drain and stop what has to be; returns after how many seconds to look again."""
        now = self.now()
        later = []
        for member in self.members:
            idle = member.model.idle_seconds
            if member.state is State.READY and not member.leases and idle:
                if now - member.last_used >= idle:
                    self.drain(member, f"{idle:g} s without a request")
                else:
                    later.append(member.last_used + idle)
            if member.state is State.UNLOADING and not member.leases and member.server is not None:
                member.server.terminate()
        held = [member for member in self.members if member.state in LOADED]
        wanted = [
            (since, member)
            for member in self.members
            if (since := member.wanted_since) is not None and member not in held
        ]
        for _, member in sorted(wanted, key=lambda one: one[0]):
            if now < member.retry_at:
                later.append(member.retry_at)
                continue
            if self.stopping or (held and not self.judged):
                break
            if not self.short(member, held):
                self.begin(member)
            elif member.waiting:
                self.make_room(member, held)
            else:
                # It is to be started again after a crash, which is no reason to unload another.
                member.crashed = False
                self.set_state(member, State.UNLOADED)
                continue
            # If room is being made for this one, no later one may take it.
            held.append(member)
        return max(0.0, min(later) - now) if later else None

    def short(self, member: Member, others: Sequence[Member]) -> set[str]:
        """The resources of which ``others`` leave too little for ``member``."""
        taken = {resource: sum(other.needs.get(resource, 0) for other in others) for resource in member.needs}
        return {
            resource
            for resource, amount in member.needs.items()
            if taken[resource] and round(taken[resource] + amount, 6) > self.capacity.get(resource, math.inf)
        }

    def make_room(self, member: Member, held: Sequence[Member]) -> None:
        """Unload others until ``member`` has room: first those that are idle, the least recently used of them first.

        Models that load are left to finish, and to answer those who wait for them.
        """
        staying = [other for other in held if other.state is not State.UNLOADING]
        ready = [other for other in staying if other.state is State.READY]
        for victim in sorted(ready, key=lambda one: (one.leases > 0, one.last_used)):
            if self.short(member, staying) & victim.needs.keys():
                self.drain(victim, f"{member.model.name} needs its place")
                staying.remove(victim)

    def drain(self, member: Member, why: str) -> None:
        log.info("unloading %s: %s", member.model.name, why)
        self.set_state(member, State.UNLOADING)

    def set_state(self, member: Member, state: State) -> None:
        member.state, member.since = state, self.now()
        self.changed.set()

    def begin(self, member: Member) -> None:
        log.info("loading %s", member.model.name)
        member.crashed = False
        self.set_state(member, State.LOADING)
        member.life = asyncio.create_task(self.live(member))

    async def live(self, member: Member) -> None:
        served = False
        try:
            server = member.server = await self.start(member)
            if self.stopping:
                # ``close`` could not end it yet.
                server.terminate()
            self.changed.set()
            try:
                async with asyncio.timeout(member.model.load_seconds or None):
                    await server.until_ready()
                    await self.on_ready(member)
            except TimeoutError as error:
                server.terminate()
                await server.ended
                limit = f"{member.model.load_seconds:g} s (load_seconds in the models' file)"
                raise StartupError(f"it was not ready within {limit}") from error
            # If it has ended meanwhile, those who wait get the reason.
            if member.state is State.LOADING and not server.ended.done():
                served = True
                self.serve(member)
            reason = await asyncio.shield(server.ended)
        except StartupError as error:
            reason = str(error)
        except Exception as error:
            log.exception("unforeseen, with the server of %s", member.model.name)
            reason = f"a mistake of the fleet ({type(error).__name__}), which is in its log"
        member.server = None
        if member.state is State.UNLOADING:
            log.info("%s is unloaded", member.model.name)
            self.set_state(member, State.UNLOADED)
        else:
            self.fail(member, reason, served)

    def serve(self, member: Member) -> None:
        """Let the requests go that wait. Before any other decision, so that a model that was loaded answers them."""
        log.info("%s is ready, after %.1f s", member.model.name, self.now() - member.since)
        self.set_state(member, State.READY)
        member.last_used, member.reason = self.now(), ""
        self.answer_waiting(member)

    def fail(self, member: Member, reason: str, served: bool) -> None:
        """Try again after 0, 2, 4, 8 ... 30 s: by itself if it had been ready, else for the next request."""
        if served and self.now() - member.since >= CALM_SECONDS:
            member.failures = 0
        member.failures += 1
        step = member.failures - served
        log.error("%s has failed: %s", member.model.name, reason)
        self.set_state(member, State.FAILED)
        member.reason, member.crashed = reason, served
        member.retry_at = self.now() + (min(MOST_DELAY_SECONDS, 2**step) if step else 0)
        if not served:
            self.answer_waiting(member, self.refusal(member))

    def answer_waiting(self, member: Member, error: Unavailable | None = None) -> None:
        for waiter in [one for one in member.waiting if not one.done()]:
            if error is None:
                member.leases += 1
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
        member.waiting.clear()

    async def close(self) -> None:
        """End all servers, whatever requests they have."""
        self.stopping = True
        for member in self.members:
            self.answer_waiting(member, Draining(STOPPING))
            if member.state in LOADED:
                self.set_state(member, State.UNLOADING)
                if member.server is not None:
                    member.server.terminate()
        await asyncio.gather(*[member.life for member in self.members if member.life is not None])
