"""Which models of a fleet are loaded: on demand, as far as memory and exclusive groups allow.

``step`` is the only place that decides. It runs after everything that may change its decisions.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from llava_api.cli.fleet.models_file import FleetModel
from llava_api.errors import Draining, ErrorCode, StartupError, Unavailable

log = logging.getLogger(__name__)

CALM_SECONDS = 600
"""After so long without a crash, the next one counts as the first."""
MOST_DELAY_SECONDS = 30
ROUNDING = 1e-9


class State(StrEnum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    """Its last requests go on, new ones wait until it is loaded again."""
    FAILED = "failed"


LOADED = (State.LOADING, State.READY, State.UNLOADING)
"""The states in which memory is taken."""


class Server(Protocol):
    """``child.Child``."""

    @property
    def ended(self) -> "asyncio.Task[str]": ...
    async def until_ready(self) -> None: ...
    def terminate(self) -> None: ...


@dataclass(slots=True, eq=False)
class Member:
    model: FleetModel
    needs: dict[str, float] = field(default_factory=dict)
    """Resource -> how much of it the model takes while it is loaded."""
    state: State = State.UNLOADED
    server: Server | None = None
    life: "asyncio.Task[None] | None" = None
    """From the start of its server to the end."""
    reason: str = ""
    """Of the last failure."""
    wanted_since: float | None = None
    leases: int = 0
    """Requests that are at the model."""
    waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)
    """Requests that wait for it, oldest first."""
    since: float = 0
    """When the state began."""
    last_used: float = 0
    failures: int = 0
    """In a row."""
    retry_at: float = 0


class Fleet:
    """``capacity``: resource -> how much there is; a resource that is not in it has room for everything.

    ``start`` starts a model's server, and raises StartupError. ``on_ready`` is awaited before it gets requests.
    """

    def __init__(
        self,
        members: Sequence[Member],
        capacity: Mapping[str, float],
        start: Callable[[Member], Awaitable[Server]],
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
    async def lease(self, member: Member, seconds: float | None = None) -> AsyncIterator[Server]:
        """The model's server, once it is ready; it is not unloaded before the end of the block.

        Raises Unavailable with the reason if the model cannot be loaded, or is not within ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.place(member)
        except TimeoutError as error:
            reason = f"The model {member.model.name} is still {member.state}: ask again later."
            raise Unavailable(reason, code=ErrorCode.REQUEST_TIMEOUT) from error
        try:
            assert member.server is not None
            yield member.server
        finally:
            self.release(member)

    async def place(self, member: Member) -> None:
        if self.stopping:
            raise stopping()
        if member.state is State.READY:
            member.leases += 1
            return
        if member.state is State.FAILED and member.wanted_since is None and self.now() < member.retry_at:
            raise self.refusal(member)
        if member.wanted_since is None:
            member.wanted_since = self.now()
        waiter = asyncio.get_running_loop().create_future()
        member.waiting.append(waiter)
        self.changed.set()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(member)
            raise
        finally:
            with suppress(ValueError):
                member.waiting.remove(waiter)

    def release(self, member: Member) -> None:
        member.leases -= 1
        member.last_used = self.now()
        self.changed.set()

    async def load(self, member: Member) -> None:
        """Raises Unavailable."""
        async with self.lease(member):
            pass

    async def unload(self, member: Member) -> None:
        """Returns when its server has ended. Requests that are at the model end before."""
        if member.state in (State.READY, State.LOADING):
            self.drain(member, "asked to")
        if member.life is not None and member.state is State.UNLOADING:
            await asyncio.wait({member.life})

    def refusal(self, member: Member) -> Unavailable:
        error = Unavailable(
            f"The model {member.model.name} could not be loaded: {member.reason}", code=ErrorCode.MODEL_NOT_READY
        )
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
            if not member.waiting and member.state is not State.FAILED:
                # Those who wanted it have gone.
                member.wanted_since = None
        held = [member for member in self.members if member.state in LOADED]
        wanted = [m for m in self.members if m.wanted_since is not None and m.state in (State.UNLOADED, State.FAILED)]
        for member in sorted(wanted, key=lambda one: one.wanted_since or 0):
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
                member.wanted_since = None
                self.enter(member, State.UNLOADED)
                continue
            # If room is being made for this one, no later one may take it.
            held.append(member)
        return max(0.0, min(later) - now) if later else None

    def short(self, member: Member, others: Sequence[Member]) -> set[str]:
        """The resources of which ``others`` leave too little for ``member``."""
        found = set()
        for resource, amount in member.needs.items():
            taken = sum(other.needs.get(resource, 0) for other in others)
            if taken and taken + amount > self.capacity.get(resource, math.inf) + ROUNDING:
                found.add(resource)
        return found

    def make_room(self, member: Member, held: Sequence[Member]) -> None:
        """Unload others until ``member`` has room: first those that are idle, the least recently used of them first.

        Models that load are left to finish, and to answer those who wait for them.
        """
        staying = [other for other in held if other.state is not State.UNLOADING]
        ready = [other for other in staying if other.state is State.READY]
        for victim in sorted(ready, key=lambda one: (one.leases > 0, one.last_used)):
            short = self.short(member, staying)
            if short & victim.needs.keys():
                self.drain(victim, f"{member.model.name} needs its place")
                staying.remove(victim)

    def drain(self, member: Member, why: str) -> None:
        log.info("unloading %s: %s", member.model.name, why)
        self.enter(member, State.UNLOADING)

    def enter(self, member: Member, state: State) -> None:
        member.state, member.since = state, self.now()
        self.changed.set()

    def begin(self, member: Member) -> None:
        log.info("loading %s", member.model.name)
        self.enter(member, State.LOADING)
        member.life = asyncio.create_task(self.live(member))

    async def live(self, member: Member) -> None:
        served = False
        try:
            member.server = await self.start(member)
            if self.stopping:
                # ``close`` could not end it yet.
                member.server.terminate()
            self.changed.set()
            await member.server.until_ready()
            await self.on_ready(member)
            # If it has ended meanwhile, those who wait get the reason.
            if member.state is State.LOADING and not member.server.ended.done():
                served = True
                self.serve(member)
            reason = await asyncio.shield(member.server.ended)
        except StartupError as error:
            reason = str(error)
        except Exception as error:
            log.exception("unforeseen, with the server of %s", member.model.name)
            reason = f"a mistake of the fleet ({type(error).__name__}), which is in its log"
        member.server = None
        if member.state is State.UNLOADING:
            log.info("%s is unloaded", member.model.name)
            self.enter(member, State.UNLOADED)
        else:
            self.fail(member, reason, served)

    def serve(self, member: Member) -> None:
        """Let the requests go that wait. Before any other decision, so that a model that was loaded answers them."""
        log.info("%s is ready, after %.1f s", member.model.name, self.now() - member.since)
        self.enter(member, State.READY)
        member.last_used, member.wanted_since = self.now(), None
        for waiter in member.waiting:
            if not waiter.done():
                member.leases += 1
                waiter.set_result(None)
        member.waiting.clear()

    def fail(self, member: Member, reason: str, served: bool) -> None:
        """Try again after 0, 2, 4, 8 ... 30 s: by itself if it had been ready, else for the next request."""
        if served and self.now() - member.since >= CALM_SECONDS:
            member.failures = 0
        member.failures += 1
        step = member.failures - served
        delay = min(MOST_DELAY_SECONDS, 2**step) if step else 0
        log.error("%s has failed: %s", member.model.name, reason)
        self.enter(member, State.FAILED)
        member.reason, member.retry_at = reason, self.now() + delay
        member.wanted_since = self.now() if served else None
        if not served:
            self.refuse_waiting(member, self.refusal(member))

    def refuse_waiting(self, member: Member, error: Unavailable) -> None:
        for waiter in member.waiting:
            if not waiter.done():
                waiter.set_exception(error)
        member.waiting.clear()

    async def close(self) -> None:
        """End all servers, whatever requests they have."""
        self.stopping = True
        for member in self.members:
            self.refuse_waiting(member, stopping())
            if member.state in LOADED:
                self.enter(member, State.UNLOADING)
                if member.server is not None:
                    member.server.terminate()
        lives = {member.life for member in self.members if member.life is not None}
        if lives:
            await asyncio.wait(lives)


def stopping() -> Draining:
    return Draining("The server is stopping.")
