"""Batches when the disk is full, and when the server ends at the worst moments."""

import asyncio
from typing import Any

import pytest

from llava_api.batch import runner
from llava_api.errors import StorageFull
from tests.api.test_batches import content, create, line, until
from tests.support.batch_server import Serve, Server, counted
from tests.support.scripted_engine import ScriptedEngine


async def test_a_full_disk_loses_nothing(
    server: Server, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.01)
    assert server.services.data is not None
    files, full = server.services.data.files, asyncio.Event()
    append = files.append

    async def append_unless_full(file_id: str, lines: bytes) -> None:
        if not full.is_set():
            raise StorageFull("The disk is full.")
        await append(file_id, lines)

    monkeypatch.setattr(files, "append", append_unless_full)
    alice = server.api("alice")
    made = await create(alice, [line(str(number)) for number in range(50)])
    while len(engine.requests) < 20:
        await asyncio.sleep(0.01)
    assert await counted(alice, made.id, 0) == 0
    full.set()
    done = await until(alice, made, "completed")
    assert len(await content(alice, done.output_file_id)) == len(engine.requests) == 50


async def test_a_disk_that_is_full_at_the_validation_makes_nothing_run_twice(
    server: Server, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.01)
    assert server.services.data is not None
    files, tries = server.services.data.files, 0
    add_output = files.add_output

    def add_output_unless_full(*arguments: Any) -> str:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise StorageFull("The disk is full.")
        return add_output(*arguments)

    monkeypatch.setattr(files, "add_output", add_output_unless_full)
    alice = server.api("alice")
    done = await until(alice, await create(alice, [line(str(number)) for number in range(20)]), "completed")
    assert len(await content(alice, done.output_file_id)) == len(engine.requests) == 20


async def test_a_batch_that_has_expired_stays_expired(
    serve: Serve, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends between the naming of what did not run and the end of the batch."""
    engine.pause_seconds = 5
    async with serve(engine) as server:
        alice = server.api("alice")
        made = await create(alice, [line("a")])
        assert server.services.batches is not None
        job = server.services.batches.jobs[made.id]
        ended = asyncio.Event()

        async def end(*_: Any) -> None:
            ended.set()
            raise RuntimeError("The server is killed.")

        monkeypatch.setattr(job, "end", end)
        job.clock = lambda: made.created_at + 24 * 3600
        job.news.set()
        await asyncio.wait_for(ended.wait(), 20)
    async with serve(ScriptedEngine()) as server:
        alice = server.api("alice")
        done = await until(alice, made, "expired", "completed")
        assert done.status == "expired"
        (late,) = await content(alice, done.error_file_id)
        assert late["error"]["code"] == "batch_expired"
