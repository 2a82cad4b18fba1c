"""Weighted turns: shares by weight over time, and never more than one turn of another before a single request."""

import asyncio
from collections import Counter
from random import Random

import pytest

from llava_api.concurrency.admission import Admission, Slot


class Engine:
    """Answers in the order in which they were let in, one step after the other."""

    def __init__(self, slots: int, most_waiting: int = 10_000) -> None:
        self.admission = Admission(slots, most_waiting, timeout_seconds=60)
        self.served: list[tuple[str, int]] = []
        """(caller, cost) in the order of their turns."""
        self.running: list[Slot] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, caller: str, weight: float = 1.0, cost: int = 1) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.wait(caller, weight, cost))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def wait(self, caller: str, weight: float, cost: int) -> None:
        slot = await self.admission.enter(caller, cost, weight)
        self.served.append((caller, cost))
        self.running.append(slot)

    async def finish_one(self) -> None:
        self.running.pop(0).release()
        for _ in range(3):
            await asyncio.sleep(0)

    async def finish_all(self) -> None:
        while self.running:
            await self.finish_one()
        await asyncio.gather(*self.tasks)
        assert (self.admission.running, self.admission.waiting) == (0, 0)
        assert (self.admission.queues, self.admission.absent) == ({}, {})

    def turns(self, since: int = 0) -> Counter[str]:
        return Counter(caller for caller, _ in self.served[since:])


@pytest.mark.parametrize("crowd_weight", [0.01, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("own_weight", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("came_after", [0, 1, 250])
async def test_500_waiting_requests_delay_a_single_one_by_at_most_one_turn(
    crowd_weight: float, own_weight: float, came_after: int
) -> None:
    engine = Engine(slots=1)
    for _ in range(500 + came_after):
        await engine.ask("crowd", crowd_weight)
    for _ in range(came_after):
        await engine.finish_one()
    before = len(engine.served)
    await engine.ask("single", own_weight)
    for _ in range(2):
        await engine.finish_one()
    assert "single" in engine.turns(before)
    await engine.finish_all()


async def test_slots_are_shared_by_weight() -> None:
    engine = Engine(slots=4)
    weights = {"one": 1.0, "two": 2.0, "five": 5.0}
    for name, weight in weights.items():
        for _ in range(900):
            await engine.ask(name, weight)
    for _ in range(800):
        await engine.finish_one()
    turns = engine.turns()
    # Four of them were let in before anybody had to wait.
    assert {
        name: turns[name] == pytest.approx(100 * weight, abs=6) for name, weight in weights.items()
    } == dict.fromkeys(weights, True), turns
    await engine.finish_all()


async def test_a_request_for_many_answers_counts_as_many() -> None:
    engine = Engine(slots=8)
    for _ in range(200):
        await engine.ask("many", cost=8)
        for _ in range(8):
            await engine.ask("few")
    while sum(cost for _, cost in engine.served) < 1200:
        await engine.finish_one()
    answers: Counter[str] = Counter()
    for caller, cost in engine.served:
        answers[caller] += cost
    assert abs(answers["many"] - answers["few"]) <= 16
    await engine.finish_all()


@pytest.mark.parametrize("seed", range(30))
async def test_nobody_waits_for_more_than_one_turn_of_each_other_whoever_comes_when(seed: int) -> None:
    """Random callers with random weights come and go; each one that is new waits for one turn of each other at most."""
    random = Random(f"turns {seed}")
    engine = Engine(slots=random.choice([1, 2, 3]))
    weights = {f"caller {index}": random.choice([0.01, 0.3, 1, 1, 1, 5, 100]) for index in range(6)}
    for name, weight in weights.items():
        for _ in range(random.randrange(1, 40)):
            await engine.ask(name, weight)
    newcomers: dict[str, int] = {}
    """When they came."""
    for step in range(200):
        if random.random() < 0.3:
            name = f"newcomer {step}"
            newcomers[name] = len(engine.served)
            await engine.ask(name, random.choice([0.01, 1, 100]))
        if random.random() < 0.3:
            name = random.choice(list(weights))
            await engine.ask(name, weights[name])
        if engine.running:
            await engine.finish_one()
    await engine.finish_all()
    for name, since in newcomers.items():
        served_at = engine.served.index((name, 1))
        before = Counter(caller for caller, _ in engine.served[since:served_at])
        assert max(before.values(), default=0) <= 1, (name, before)


async def test_leaving_and_coming_back_gains_no_turns() -> None:
    """One who always has one request waiting, and comes anew with each, gets no more than one who has many."""
    engine = Engine(slots=1)
    for _ in range(600):
        await engine.ask("patient", 3.0)
    coming = await engine.ask("hopping", 1.0)
    for _ in range(400):
        await engine.finish_one()
        if coming.done():
            coming = await engine.ask("hopping", 1.0)
    turns = engine.turns()
    assert turns["hopping"] == pytest.approx(100, abs=5)
    await engine.finish_all()


async def test_giving_up_and_coming_back_gains_no_turns() -> None:
    engine = Engine(slots=1)
    for _ in range(300):
        await engine.ask("patient")
    coming = await engine.ask("hopping")
    for _ in range(200):
        await engine.finish_one()
        if coming.done():
            given_up = await engine.ask("hopping")
            given_up.cancel()
            engine.tasks.remove(given_up)
            await asyncio.sleep(0)
            coming = await engine.ask("hopping")
    turns = engine.turns()
    assert turns["hopping"] <= turns["patient"] + 1
    await engine.finish_all()


async def test_a_stream_of_newcomers_holds_nobody_up() -> None:
    """With each answer somebody comes who was never seen before: as many more wait as the steady one has had turns.

    Equal shares mean a turn in k where k callers wait: 14 in 100.
    """
    engine = Engine(slots=1)
    for _ in range(50):
        await engine.ask("steady")
    for newcomer in range(100):
        await engine.ask(f"192.0.2.{newcomer}")
        await engine.finish_one()
    assert 12 <= engine.turns()["steady"] <= 16
    await engine.finish_all()


async def test_ten_thousand_callers_leave_nothing_behind() -> None:
    engine = Engine(slots=2)
    most_kept = 0
    for caller in range(10_000):
        await engine.ask(f"192.0.2.{caller}")
        if caller >= 10:
            await engine.finish_one()
        most_kept = max(most_kept, len(engine.admission.queues) + len(engine.admission.absent))
    assert most_kept < 100
    await engine.finish_all()
