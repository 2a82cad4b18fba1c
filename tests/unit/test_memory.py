"""The budget of bytes that requests hold."""

import pytest

from llava_api.errors import Busy
from llava_api.limits.memory import MemoryBudget


def test_what_is_taken_is_given_back_once() -> None:
    budget = MemoryBudget(100)
    held = budget.hold("anne")
    held.take(60)
    held.take(20)
    assert (budget.held_bytes, budget.callers) == (80, {"anne": 80})
    held.keep(30)
    assert budget.held_bytes == 30
    held.keep(40)
    assert budget.held_bytes == 40
    held.release()
    held.release()
    # A thread that reads a file ends after its caller has gone.
    held.take(50)
    assert (budget.held_bytes, budget.callers) == (0, {})


def test_beyond_the_budget_it_is_busy_and_nothing_is_taken() -> None:
    budget = MemoryBudget(100)
    anne, ben = budget.hold("anne"), budget.hold("ben")
    anne.take(70)
    with pytest.raises(Busy) as refused:
        ben.take(40)
    assert (refused.value.status, refused.value.code) == (503, "memory_full")
    assert refused.value.retry_after_seconds is not None
    assert (budget.held_bytes, budget.callers) == (70, {"anne": 70})
    ben.take(30)
    with pytest.raises(Busy):
        ben.keep(31)
    assert budget.held_bytes == 100


def test_one_callers_many_leave_half_to_the_others() -> None:
    budget = MemoryBudget(100)
    for _ in range(2):
        budget.hold("anne").take(25)
    with pytest.raises(Busy):
        budget.hold("anne").take(1)
    budget.hold("ben").take(50)


def test_one_request_alone_may_take_it_all() -> None:
    budget = MemoryBudget(100)
    held = budget.hold("anne")
    held.take(90)
    held.take(10)
    with pytest.raises(Busy):
        budget.hold("anne").take(1)
    budget.hold("anne").take(0)
