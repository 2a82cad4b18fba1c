"""How many requests of batches may run beside the interactive ones, and which of them give way.

An interactive request waits for the engine's present step, which cannot be broken off. So what may be in one is limited
while such requests are likely. ``benchmarks/batches.py`` measures it.
"""

import asyncio
from collections.abc import Callable

from llava_api.batch.job import Job
from llava_api.concurrency.capacity import Capacity, do_nothing

QUIET_SECONDS = 10.0
"""After this time without an interactive request, batches may use all of the engine."""
BESIDE = 0.125
"""Share of the slots that batches may use until then."""
AHEAD = 1.0
"""Requests that are prepared beyond the engine's slots, for each slot, so that no slot waits for an image."""


class LineRun:
    """One run of a batch's request. It is a ``Visit``."""

    def __init__(self, room: "Room", job: Job, number: int) -> None:
        self.room = room
        self.job = job
        self.number = number
        self.begun = False
        """Whether the engine has given its first token."""
        self.given_up = asyncio.Event()

    def begin_answer(self) -> None:
        self.begun = True
        self.room.changed()

    def leave(self) -> None:
        """Its request has ended; ``Room.leave`` follows when its answer has been noted."""

    def give_way(self) -> None:
        """Break it off; it is put back unless its answer is complete."""
        self.given_up.set()


class Room:
    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.runs: dict[LineRun, None] = {}
        """The oldest first."""
        self.changed: Callable[[], None] = do_nothing
        """Called when there may be more room."""
        capacity.changed = self.on_visit

    def has_room(self) -> bool:
        """Whether one more request may begin."""
        capacity = self.capacity
        if capacity.idle_seconds >= QUIET_SECONDS:
            return len(self.runs) < capacity.slots * (1 + AHEAD)
        # One prompt at a time, and none while an interactive one is computed.
        return not capacity.waiting and len(self.runs) < self.beside and all(run.begun for run in self.runs)

    @property
    def beside(self) -> int:
        """How many may run while interactive requests are there or likely, if there is a slot for each."""
        return max(0, min(max(1, int(self.capacity.slots * BESIDE)), self.capacity.slots - self.capacity.visitors))

    def on_visit(self) -> None:
        """An interactive request has come, got its first token, or gone."""
        capacity = self.capacity
        if capacity.waiting:
            # At its very beginning, so that the engine is done with them when this request's image is decoded.
            for run in [run for run in self.runs if not run.begun]:
                run.give_way()
        if capacity.visitors:
            # To break off answers takes time, in which no first token should be waited for, unless for a slot.
            stay = capacity.slots - capacity.visitors if capacity.waiting else self.beside
            for run in list(self.runs)[max(0, stay) :]:
                run.give_way()
        else:
            asyncio.get_running_loop().call_later(QUIET_SECONDS, self.changed)
        self.changed()

    def runs_of(self, job: Job) -> list[LineRun]:
        return [run for run in self.runs if run.job is job]

    def enter(self, run: LineRun) -> None:
        self.runs[run] = None

    def leave(self, run: LineRun) -> None:
        del self.runs[run]
