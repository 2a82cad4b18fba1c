"""Which requests of batches the engine has beside interactive ones."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llava_api.batch import room as module
from llava_api.batch.room import LineRun, Room
from llava_api.concurrency.admission import Slot
from llava_api.concurrency.capacity import Capacity

JOB: Any = None


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Runs:
    """As many runs as there is room for, which wait for the engine."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.all: list[LineRun] = []
        self.waiting: dict[LineRun, asyncio.Task[Slot]] = {}

    async def fill(self) -> Sequence[LineRun]:
        new = []
        while self.room.has_room():
            run = LineRun(self.room, JOB, len(self.all))
            self.room.enter(run)
            self.waiting[run] = asyncio.create_task(run.enter("a caller"))
            self.all.append(run)
            new.append(run)
        self.room.refresh()
        await turns()
        return new

    def end(self, run: LineRun) -> None:
        self.waiting.pop(run).result().release()
        self.all.remove(run)
        self.room.leave(run)

    @property
    def admitted(self) -> int:
        return sum(run.admitted for run in self.all)

    @property
    def gone(self) -> list[bool]:
        return [run.given_up.is_set() for run in self.all]


async def test_a_quiet_engine_is_filled_and_as_many_are_prepared() -> None:
    runs = Runs(Room(Capacity(8)))
    await runs.fill()
    assert (len(runs.all), runs.admitted) == (16, 8)
    runs.end(runs.all[0])
    await turns()
    assert runs.admitted == 8


async def test_what_has_no_token_gives_way_and_what_is_prepared_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BESIDE", 0.25)
    capacity = Capacity(8)
    runs = Runs(Room(capacity))
    await runs.fill()
    for run in runs.all[:6]:
        run.begin_answer()
    visit = capacity.enter()
    assert runs.gone == [False] * 6 + [True] * 2 + [False] * 8
    for run in runs.all[6:8]:
        runs.end(run)
    await turns()
    assert (runs.admitted, list(await runs.fill())) == (6, [])
    # With the first token, only a quarter stays.
    visit.begin_answer()
    assert runs.gone == [False] * 2 + [True] * 4 + [False] * 8
    for run in runs.all[2:6]:
        runs.end(run)
    await turns()
    assert runs.admitted == 2
    # Then one prompt at a time.
    for run in runs.all[:2]:
        runs.end(run)
    await turns()
    assert runs.admitted == 1
    runs.all[0].begin_answer()
    await turns()
    assert runs.admitted == 2


async def test_no_slot_is_missing_for_interactive_requests() -> None:
    capacity = Capacity(4)
    runs = Runs(Room(capacity))
    await runs.fill()
    for run in runs.all[:4]:
        run.begin_answer()
    for left in (3, 2, 1, 0):
        capacity.enter()
        assert runs.gone[:4] == [False] * left + [True] * (4 - left)


async def test_the_engine_is_quiet_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.02)
    capacity = Capacity(8)
    room = Room(capacity)
    runs, changed = Runs(room), asyncio.Event()
    visit = capacity.enter()
    assert await runs.fill() == []
    visit.leave()
    await runs.fill()
    assert runs.admitted == 1
    room.changed = lambda: changed.set() if room.quiet else None
    async with asyncio.timeout(5):
        await changed.wait()
    await runs.fill()
    assert (len(runs.all), runs.admitted) == (16, 8)
