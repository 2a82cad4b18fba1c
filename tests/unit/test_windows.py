"""Counts of the last minute: in memory, in a Redis that several servers share or a fleet, and while that is away."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fakeredis import FakeAsyncRedis, FakeServer

from llava_api.cli.fleet.control import control_socket
from llava_api.cli.fleet.supervisor import Fleet
from llava_api.limits.windows import FLEET, Windows, open_windows
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def redis() -> AsyncIterator[FakeServer]:
    yield FakeServer()


@pytest_asyncio.fixture
async def servers(redis: FakeServer) -> AsyncIterator[list[Windows]]:
    """Two servers that share the Redis."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            client = FakeAsyncRedis(server=redis)
            made.append(Windows(client))
            stack.push_async_callback(made[-1].close)
        yield made


async def test_a_window_is_full_and_then_passes(clock: Clock) -> None:
    windows = Windows(clock=clock)
    assert (await windows.state("requests", "anne", 2)).remaining == 2
    first = await windows.add("requests", "anne", 2, 1)
    clock.now += 20
    later = [await windows.add("requests", "anne", 2, 1) for _ in range(2)]
    assert [state.exceeded for state in (first, *later)] == [False, False, True]
    state = await windows.state("requests", "anne", 2)
    assert (state.remaining, state.ends_at - clock.now) == (0, 40)
    assert (await windows.state("requests", "ben", 2)).remaining == 2
    assert (await windows.state("tokens", "anne", 2)).remaining == 2
    clock.now = state.ends_at
    assert not (await windows.add("requests", "anne", 2, 1)).exceeded


async def test_what_has_ended_is_forgotten_and_never_more_is_kept_than_said(clock: Clock) -> None:
    windows = Windows(clock=clock, most=1000)
    for caller in range(10_000):
        await windows.add("requests", str(caller), 1, 1)
        assert len(windows.own) <= 1001
    clock.now += 61
    assert (await windows.state("requests", "9999", 1)).remaining == 1
    assert len(windows.own) == 0


async def test_two_servers_count_together(servers: list[Windows]) -> None:
    first, second = servers
    for windows in (first, second, first):
        assert not (await windows.add("requests", "anne", 3, 1)).exceeded
    state = await second.add("requests", "anne", 3, 1)
    assert (state.exceeded, state.remaining) == (True, 0)
    # With a limit that another server does not know of yet.
    assert (await second.state("requests", "anne", 10)).remaining == 6
    assert 0 < state.ends_at - second.clock() <= 60
    assert (await first.state("requests", "ben", 3)).remaining == 3


async def test_a_shared_window_really_passes(redis: FakeServer, servers: list[Windows]) -> None:
    for windows in servers:
        windows.seconds = 1
    await servers[0].add("requests", "anne", 1, 1)
    state = await servers[1].add("requests", "anne", 1, 1)
    assert state.exceeded
    await asyncio.sleep(state.ends_at - servers[1].clock())
    assert not (await servers[1].add("requests", "anne", 1, 1)).exceeded
    # Nothing stays behind in Redis either.
    async with asyncio.timeout(5):
        while await FakeAsyncRedis(server=redis).keys("*"):
            await asyncio.sleep(0.05)


async def test_while_redis_is_away_each_server_counts_for_itself(
    redis: FakeServer, servers: list[Windows], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    first = servers[0]
    assert not (await first.add("requests", "anne", 2, 2)).exceeded
    redis.connected = False
    for windows in servers:
        added = [await windows.add("requests", "anne", 2, 1) for _ in range(3)]
        assert [state.exceeded for state in added] == [False, False, True]
    # One line of each server, however many requests there are.
    assert caplog.text.count("Redis does not answer") == 2
    assert [windows.redis_fails for windows in servers] == [True, True]
    redis.connected = True
    first.redis_paused_until = 0.0
    assert (await first.state("requests", "anne", 2)).remaining == 0
    assert (await first.state("requests", "ben", 2)).remaining == 2
    assert not first.redis_fails


@pytest.mark.parametrize("silent", [True, False])
async def test_a_redis_that_is_silent_or_talks_nonsense_is_not_waited_for(silent: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not silent:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    windows = open_windows(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    started = time.monotonic()
    async with asyncio.timeout(5):
        added = [await windows.add("requests", "anne", 2, 1) for _ in range(50)]
    assert [state.exceeded for state in added] == [False] * 2 + [True] * 48
    assert time.monotonic() - started < 1
    await windows.close()
    server.close()
    await server.wait_closed()


async def test_a_redis_that_is_not_there_stops_nobody() -> None:
    windows = open_windows("redis://127.0.0.1:1")
    assert not (await windows.add("requests", "anne", 1, 1)).exceeded
    await windows.close()


async def nothing(member: object) -> Any: ...


async def test_the_servers_of_a_fleet_count_together_and_alone_while_it_is_away(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "counts.sock"
    fleets = Windows(clock=clock)
    one, another, itself = (open_windows(f"{FLEET}{path}{model}") for model in ("", "", "#large"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        async with control_socket(Fleet([], {}, nothing, nothing), fleets, listener):
            assert (await one.add("requests", "me", 5, 2)).counted == 2
            # Two requests of one server at once: each gets its own answer.
            both = await asyncio.gather(another.add("requests", "me", 5, 1), another.add("tokens", "me", 5, 7))
            assert [state.counted for state in both] == [3, 7]
            assert (await itself.state("requests", "me", 5)).counted == 0
            assert (await itself.add("requests", "me", 5, 4)).counted == 4
            clock.now += 20
            state = await one.state("requests", "me", 5)
            assert (state.remaining, round(state.ends_at - one.clock())) == (2, 40)
    for windows in (one, another):
        await windows.close()
    assert (await one.add("requests", "me", 5, 1)).counted == 1
    assert one.redis_fails
    await itself.close()
