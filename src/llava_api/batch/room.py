"""How many requests of batches may run beside the interactive ones, and which of them give way.

An interactive request waits for the engine's present step, which cannot be broken off. So what may be in one is limited
while such requests are likely. ``benchmarks/batches.py`` measures it.
"""

import asyncio
from collections.abc import Callable

from llava_api.batch.job import Job
from llava_api.concurrency.admission import Admission, Slot
from llava_api.concurrency.capacity import Capacity, do_nothing

QUIET_SECONDS = 10.0
"""After this time without an interactive request, batches may use all of the engine."""
BESIDE = 0.125
"""Share of the slots that batches may use until then."""
AHEAD = 1.0
"""Requests for each slot that are prepared before there is a slot for them, so that no slot waits for an image."""
PREPARED_BYTES = 64_000_000
"""Most bytes of requests that are prepared at once, since each delays the event loop. A single one may be larger."""


class LineRun:
    """One run of a batch's request. It is the ``Visit`` of its request, and gives it its turn at the engine."""

    def __init__(self, room: "Room", job: Job, number: int) -> None:
        self.room = room
        self.job = job
        self.number = number
        self.slot: Slot | None = None
        """At the engine; None before its turn."""
        self.begun = False
        """Whether the engine has given its first token."""
        self.given_up = asyncio.Event()

    async def enter(self, caller: str, cost: int = 1, weight: float = 1.0) -> Slot:
        self.slot = await self.room.admission.enter(caller, weight=weight)
        return self.slot

    @property
    def admitted(self) -> bool:
        """Whether the engine has it or had it."""
        return self.slot is not None

    @property
    def answering(self) -> bool:
        """Whether the engine has it, and has given its first token."""
        return self.begun and self.slot is not None and self.slot.taken

    def begin_answer(self) -> None:
        self.begun = True
        self.room.refresh()

    def leave(self) -> None:
        """Its request has ended; ``Room.leave`` follows when its answer has been noted."""

    def give_way(self) -> None:
        """Break it off; it is put back unless its answer is complete."""
        self.given_up.set()


class BatchAdmission(Admission):
    """Lets in as many as the room has place for, each of which counts as one."""

    def __init__(self, room: "Room") -> None:
        super().__init__(room.capacity.slots)
        self.room = room

    def next_turns(self) -> None:
        slots, self.slots = self.slots, self.room.places(self.running)
        super().next_turns()
        self.slots = slots


class Room:
    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.admission = BatchAdmission(self)
        """The requests that are prepared wait there for the engine."""
        self.runs: dict[LineRun, None] = {}
        """The oldest first."""
        self.changed: Callable[[], None] = do_nothing
        """Called when there may be more room."""
        capacity.changed = self.on_visit

    @property
    def quiet(self) -> bool:
        return self.capacity.idle_seconds >= QUIET_SECONDS

    @property
    def beside(self) -> int:
        """How many the engine may have while there are interactive requests, or some are likely."""
        return max(0, min(max(1, int(self.capacity.slots * BESIDE)), self.capacity.slots - self.capacity.visitors))

    def has_room(self) -> bool:
        """Whether one more request may be prepared."""
        most = self.capacity.slots if self.quiet else self.beside
        return not self.capacity.waiting and len(self.runs) < most * (1 + AHEAD)

    def has_memory(self, size: int) -> bool:
        """Whether a request of ``size`` bytes may be prepared beside those that are being prepared."""
        sizes = [run.job.size(run.number) for run in self.runs if not run.admitted]
        return not sizes or sum(sizes) + size <= PREPARED_BYTES

    def places(self, running: int) -> int:
        """How many the engine may have now; it has ``running``."""
        if self.quiet:
            return self.capacity.slots
        if self.capacity.waiting or running > sum(run.answering for run in self.runs):
            # One prompt at a time, and none while an interactive one is computed.
            return running
        return min(self.beside, running + 1)

    def refresh(self) -> None:
        """Admit and begin the requests that there is room for."""
        self.admission.next_turns()
        self.changed()

    def on_visit(self) -> None:
        """An interactive request has come, got its first token, or gone."""
        capacity = self.capacity
        admitted = [run for run in self.runs if run.admitted]
        if capacity.waiting:
            # At its very beginning, so that the engine is done with them when this request's image is decoded.
            for run in admitted:
                if not run.begun:
                    run.give_way()
        if capacity.visitors:
            # Breaking off answers delays first tokens: while one is waited for, this is done only to free a slot.
            stay = capacity.slots - capacity.visitors if capacity.waiting else self.beside
            for run in admitted[max(0, stay) :]:
                run.give_way()
        else:
            asyncio.get_running_loop().call_later(QUIET_SECONDS, self.refresh)
        self.refresh()

    def runs_of(self, job: Job) -> list[LineRun]:
        return [run for run in self.runs if run.job is job]

    def enter(self, run: LineRun) -> None:
        self.runs[run] = None

    def leave(self, run: LineRun) -> None:
        del self.runs[run]
        self.refresh()
