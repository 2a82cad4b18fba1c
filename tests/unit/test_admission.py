"""Turns in front of the engine: nobody waits for another caller's crowd."""

import asyncio

import pytest

from llava_api.concurrency.admission import Admission, Slot
from llava_api.errors import Busy


class Callers:
    """Requests that note when they got their turn."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.served: list[str] = []
        self.slots: list[Slot] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, caller: str, cost: int = 1) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.wait(caller, cost))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def wait(self, caller: str, cost: int) -> None:
        slot = await self.admission.enter(caller, cost)
        self.served.append(caller)
        self.slots.append(slot)

    async def finish_one(self) -> None:
        self.slots.pop(0).release()
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
def callers() -> Callers:
    return Callers(Admission(slots=2, most_waiting=600, timeout_seconds=60))


async def test_a_single_request_waits_for_one_turn_whatever_others_have_waiting(callers: Callers) -> None:
    for _ in range(502):
        await callers.ask("crowd")
    await callers.ask("single")
    assert callers.served == ["crowd"] * 2
    for _ in range(2):
        await callers.finish_one()
    assert "single" in callers.served[2:4]


async def test_callers_take_turns(callers: Callers) -> None:
    for caller in "aaaabbbbcc":
        await callers.ask(caller)
    for _ in range(8):
        await callers.finish_one()
    assert "".join(callers.served) == "aa" + "abcabcbb"
    assert callers.admission.waiting == 0


async def test_a_full_queue_refuses(callers: Callers) -> None:
    callers.admission.most_waiting = 1
    for _ in range(3):
        await callers.ask("a")
    with pytest.raises(Busy) as refused:
        await callers.admission.enter("b", 1)
    assert refused.value.code == "queue_full"
    await callers.finish_one()
    assert callers.admission.waiting == 0
    await callers.ask("b")
    await callers.finish_one()
    assert callers.served[-1] == "b"


async def test_a_flood_fills_the_queue_for_its_own_caller_alone(callers: Callers) -> None:
    callers.admission.most_waiting = 3
    crowd = [await callers.ask("crowd") for _ in range(5)]
    single = await callers.ask("single")
    with pytest.raises(Busy) as told:
        await crowd[-1]
    assert told.value.code == "queue_full"
    assert not single.done()
    assert callers.admission.waiting == 3
    with pytest.raises(Busy):
        await callers.admission.enter("crowd", 1)
    for _ in range(4):
        await callers.finish_one()
    assert callers.served.count("single") == 1
    assert callers.served.count("crowd") == 4
    assert callers.admission.waiting == 0
    await callers.finish_one()
    assert callers.admission.running == 0


async def test_room_is_made_by_weight(callers: Callers) -> None:
    callers.admission.most_waiting = 5
    for _ in range(2):
        await callers.ask("running")
    heavy = [asyncio.create_task(callers.admission.enter("heavy", 1, weight=4.0)) for _ in range(4)]
    await callers.ask("light")
    with pytest.raises(Busy):
        # Two of weight 1 are more than four of weight 4.
        await callers.admission.enter("light", 1)
    assert not any(task.done() for task in heavy)
    for task in heavy:
        task.cancel()
    await asyncio.gather(*heavy, return_exceptions=True)


async def test_who_waits_too_long_is_told_and_leaves_no_trace(callers: Callers) -> None:
    for _ in range(2):
        await callers.ask("a")
    callers.admission.timeout_seconds = 0.01
    with pytest.raises(Busy) as refused:
        await callers.admission.enter("b", 1)
    assert refused.value.code == "queue_timeout"
    assert callers.admission.waiting == 0
    for _ in range(2):
        await callers.finish_one()
    assert callers.admission.running == 0


@pytest.mark.parametrize("turn_came", [False, True])
async def test_who_goes_away_gives_the_turn_to_the_next(callers: Callers, turn_came: bool) -> None:
    for _ in range(2):
        await callers.ask("a")
    leaving, _ = await callers.ask("b"), await callers.ask("c")
    if turn_came:
        callers.slots.pop(0).release()
    leaving.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    if not turn_came:
        await callers.finish_one()
    assert callers.served == ["a", "a", "c"]
    while callers.slots:
        await callers.finish_one()
    assert (callers.admission.running, callers.admission.waiting) == (0, 0)


async def test_a_request_for_many_answers_takes_as_many_slots(callers: Callers) -> None:
    await callers.ask("a")
    await callers.ask("b", cost=2)
    await callers.ask("c")
    # Nobody overtakes it, or it would wait for ever.
    assert callers.served == ["a"]
    await callers.finish_one()
    assert callers.served == ["a", "b"]
    await callers.finish_one()
    assert callers.served == ["a", "b", "c"]


async def test_one_for_more_answers_than_there_are_slots_has_them_all(callers: Callers) -> None:
    await callers.ask("a", cost=16)
    assert callers.served == ["a"]
    await callers.ask("b")
    assert callers.served == ["a"]
    await callers.finish_one()
    assert callers.served == ["a", "b"]


async def test_a_slot_is_given_back_once(callers: Callers) -> None:
    slot = await callers.admission.enter("a", 1)
    slot.release()
    slot.release()
    assert callers.admission.running == 0


async def test_one_caller_has_no_more_slots_than_it_may_and_holds_up_nobody_else() -> None:
    callers = Callers(Admission(slots=3, per_caller=2))
    for caller in "aaaab":
        await callers.ask(caller)
    assert callers.served == ["a", "a", "b"]
    await callers.ask("c")
    # A slot of its own becomes free, and others have waited for one while it waited for itself.
    await callers.finish_one()
    assert callers.served == ["a", "a", "b", "c"]
    while callers.slots:
        await callers.finish_one()
    assert "".join(callers.served) == "aabcaa"
    assert (callers.admission.running, callers.admission.waiting) == (0, 0)
    assert not callers.admission.running_by_caller


async def test_a_caller_that_was_held_back_by_its_own_limit_has_saved_no_turns_up() -> None:
    callers = Callers(Admission(slots=2, per_caller=1))
    for caller in "aaaa" + "bbbbbbbb":
        await callers.ask(caller)
    held_up = callers.slots.pop(0)
    for _ in range(3):
        await callers.finish_one()
    held_up.release()
    await callers.ask("c")
    for _ in range(3):
        await callers.finish_one()
    assert "".join(callers.served) == "abbbbacba"


async def test_entries_of_one_key_have_one_slot_at_the_earliest_of_their_turns(callers: Callers) -> None:
    for caller in "xx" + "aa":
        await callers.ask(caller)
    hers, his = (asyncio.create_task(callers.admission.enter(caller, key="same")) for caller in ("a", "b"))
    await asyncio.sleep(0)
    assert callers.admission.waiting == 3
    await callers.finish_one()
    await callers.finish_one()
    assert await hers is await his
    assert callers.served == ["x", "x", "a"]
    (await his).release()
    await callers.finish_one()
    await callers.finish_one()
    assert callers.served == ["x", "x", "a", "a"]
    assert (callers.admission.running, callers.admission.waiting) == (0, 0)


@pytest.mark.parametrize("leaving", [1, 2])
async def test_a_shared_slot_is_free_when_all_have_left_it(callers: Callers, leaving: int) -> None:
    for caller in "xx":
        await callers.ask(caller)
    sharing = [asyncio.create_task(callers.admission.enter(caller, key="same")) for caller in ("a", "b")]
    await asyncio.sleep(0)
    callers.slots.pop(0).release()
    for task in sharing[:leaving]:
        task.cancel()
    await asyncio.gather(*sharing, return_exceptions=True)
    assert callers.admission.running == (1 if leaving == 2 else 2)
