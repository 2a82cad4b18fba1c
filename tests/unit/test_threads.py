"""Threads: callers take turns, what nobody wants any more is not done, and the queue has a bound."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llava_api.concurrency.admission import Admission
from llava_api.concurrency.threads import FairThreads
from llava_api.errors import BadImage, Busy
from llava_api.images.load import images_busy


class Work:
    """Jobs that say when they begin and end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.free = threading.Semaphore(0)

    def named(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.begun.append(name)
            assert self.free.acquire(timeout=10)
            if name.startswith("bad"):
                raise BadImage("bad")
            return name

        return work

    def end(self, jobs: int = 1) -> None:
        self.free.release(jobs)


def one_thread(ahead: int = 0) -> FairThreads[str]:
    return FairThreads(1, "test", Admission(1 + ahead, 4, full=images_busy))


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool(work: Work) -> Iterator[FairThreads[str]]:
    pool = one_thread()
    yield pool
    work.end(1000)
    pool.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def ask(pool: FairThreads[str], work: Work, name: str, caller: str = "anne") -> "asyncio.Task[str]":
    return asyncio.create_task(pool.run(caller, work.named(name), name))


async def begin(pool: FairThreads[str], work: Work, *names: str, caller: str = "anne") -> list["asyncio.Task[str]"]:
    tasks = [ask(pool, work, name, caller) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_callers_take_turns(pool: FairThreads[str], work: Work) -> None:
    crowd = await begin(pool, work, "a1", "a2", "a3", "a4")
    (single,) = await begin(pool, work, "b1", caller="ben")
    work.end(3)
    assert await single == "b1"
    # One of hers was being done, and it was her turn once.
    assert work.begun[:3] == ["a1", "a2", "b1"]
    work.end(10)
    assert await asyncio.gather(*crowd) == ["a1", "a2", "a3", "a4"]
    assert (pool.admission.running, pool.admission.waiting, pool.work.flights, pool.admission.queues) == (0, 0, {}, {})


async def test_what_nobody_wants_any_more_is_not_done(pool: FairThreads[str], work: Work) -> None:
    first, second, third = await begin(pool, work, "1", "2", "3")
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert pool.admission.waiting == 1
    work.end(3)
    assert [await first, await third] == ["1", "3"]
    assert work.begun == ["1", "3"]


async def test_a_thread_whose_caller_has_left_keeps_its_place_until_it_has_ended(
    pool: FairThreads[str], work: Work
) -> None:
    first, second = await begin(pool, work, "1", "2")
    await until(lambda: work.begun)
    first.cancel()
    await asyncio.sleep(0.05)
    assert (pool.admission.running, work.begun) == (1, ["1"])
    work.end(2)
    assert await second == "2"
    assert (pool.admission.running, pool.work.flights) == (0, {})


async def test_ahead_of_the_threads_too_what_nobody_wants_is_not_done(work: Work) -> None:
    pool = one_thread(ahead=2)
    first, second, third, fourth = await begin(pool, work, "1", "2", "3", "4")
    await until(lambda: work.begun)
    assert (pool.admission.running, pool.admission.waiting) == (3, 1)
    second.cancel()
    await until(lambda: "2" not in pool.work.flights)
    again = ask(pool, work, "2", "ben")
    work.end(5)
    assert await asyncio.gather(first, third, fourth, again) == ["1", "3", "4", "2"]
    assert sorted(work.begun) == ["1", "2", "3", "4"]
    assert (pool.admission.running, pool.admission.waiting, pool.work.flights, pool.admission.queues) == (0, 0, {}, {})
    pool.close()


async def test_what_several_want_is_done_once_at_the_first_of_their_turns(pool: FairThreads[str], work: Work) -> None:
    hers = await begin(pool, work, "a1", "a2", "a3", "same")
    (his,) = await begin(pool, work, "same", caller="ben")
    work.end(3)
    assert await his == "same"
    work.end(5)
    assert await asyncio.gather(*hers) == ["a1", "a2", "a3", "same"]
    assert work.begun == ["a1", "a2", "same", "a3"]
    assert not pool.admission.queues


@pytest.mark.parametrize("leaving", ["first", "second"])
@pytest.mark.parametrize("when", ["waiting", "running"])
async def test_one_who_leaves_does_not_take_it_from_the_others(
    pool: FairThreads[str], work: Work, leaving: str, when: str
) -> None:
    if when == "waiting":
        await begin(pool, work, "before")
    (first,) = await begin(pool, work, "same")
    (second,) = await begin(pool, work, "same", caller="ben")
    if when == "running":
        await until(lambda: "same" in work.begun)
    leaves, stays = (first, second) if leaving == "first" else (second, first)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    assert leaves.cancelled()
    work.end(2)
    assert await stays == "same"
    assert work.begun.count("same") == 1
    await until(lambda: not pool.work.flights and not pool.admission.queues)


async def test_an_error_is_everybodys_who_wanted_it(pool: FairThreads[str], work: Work) -> None:
    tasks = [ask(pool, work, "bad", caller) for caller in ("anne", "ben", "anne")]
    await until(lambda: work.begun)
    work.end()
    assert [type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)] == [BadImage] * 3
    (again,) = await begin(pool, work, "bad")
    again.cancel()
    work.end()
    await asyncio.gather(again, return_exceptions=True)
    await until(lambda: not pool.admission.running)


async def test_the_queue_is_bounded(pool: FairThreads[str], work: Work) -> None:
    tasks = await begin(pool, work, "1", "2", "3", "4", "5")
    with pytest.raises(Busy) as refused:
        await pool.run("anne", work.named("6"), "6")
    assert (refused.value.status, refused.value.code) == (503, "images_busy")
    assert refused.value.retry_after_seconds is not None
    # What is waited for already costs nothing more.
    (same,) = await begin(pool, work, "5")
    work.end(10)
    assert await asyncio.gather(*tasks, same) == ["1", "2", "3", "4", "5", "5"]


async def test_a_crowd_that_fills_the_queue_makes_room_for_others(pool: FairThreads[str], work: Work) -> None:
    crowd = await begin(pool, work, "a1", "a2", "a3", "a4", "a5")
    his = await begin(pool, work, "b1", "b2", caller="ben")
    # Of equal shares none is taken away.
    with pytest.raises(Busy):
        await pool.run("ben", work.named("b3"), "b3")
    work.end(10)
    assert await asyncio.gather(*his) == ["b1", "b2"]
    ends = await asyncio.gather(*crowd, return_exceptions=True)
    assert ends[:3] == ["a1", "a2", "a3"]
    assert [type(end) for end in ends[3:]] == [Busy, Busy]
    assert (pool.admission.waiting, pool.admission.running, pool.admission.queues) == (0, 0, {})


async def test_closing_cancels_what_waits(work: Work) -> None:
    pool = one_thread()
    first, second = await begin(pool, work, "1", "2")
    await until(lambda: work.begun)
    pool.close()
    await asyncio.gather(second, return_exceptions=True)
    assert second.cancelled()
    work.end()
    assert await first == "1"
