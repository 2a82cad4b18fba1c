"""How many requests ``llava-api batch run`` sends at once to a server that takes only some."""

import asyncio
import time

from llava_api.cli.bulk.pace import Pace

CAPACITY = 20
REQUESTS = 1500


async def test_the_server_s_capacity_is_found_and_used_with_few_refusals() -> None:
    pace = Pace(256)
    served = most_served = refusals = answers = 0

    async def ask() -> None:
        nonlocal served, most_served, refusals, answers
        sent_at = time.monotonic()
        await asyncio.sleep(0)
        while served >= CAPACITY:
            refusals += 1
            pace.refused(sent_at, 0.05)
            pace.leave()
            await pace.enter(again=True)
            sent_at = time.monotonic()
        served += 1
        most_served = max(served, most_served)
        await asyncio.sleep(0.002)
        served -= 1
        answers += 1
        pace.answered()
        pace.leave()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(REQUESTS):
            await pace.enter()
            group.create_task(ask())
    assert (answers, most_served, pace.active) == (REQUESTS, CAPACITY, 0)
    assert 0 < refusals < REQUESTS / 10
    assert CAPACITY / 2 < pace.limit < CAPACITY * 2


async def test_nothing_is_sent_before_the_server_s_time_is_over() -> None:
    pace = Pace(1)
    await pace.enter()
    started = time.monotonic()
    pace.refused(started, 0.1)
    pace.leave()
    newcomer = asyncio.create_task(pace.enter())
    await asyncio.sleep(0)
    refused = asyncio.create_task(pace.enter(again=True))
    # The refused request is first, although the other one waits for longer.
    await asyncio.wait_for(refused, 5)
    assert time.monotonic() - started >= 0.1
    assert not newcomer.done()
    pace.leave()
    await asyncio.wait_for(newcomer, 5)


async def test_at_most_the_given_number_at_once() -> None:
    pace = Pace(2)
    await pace.enter()
    await pace.enter()
    for _ in range(10):
        pace.answered()
    assert pace.limit == 2
    third = asyncio.create_task(pace.enter())
    await asyncio.sleep(0.01)
    assert not third.done()
    pace.leave()
    await asyncio.wait_for(third, 5)
