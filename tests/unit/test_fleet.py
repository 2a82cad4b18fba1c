"""The fleet's decisions, with scripted servers: which models are loaded, and what waiting requests get."""

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import pytest

from llava_api.cli.fleet.child import Child
from llava_api.cli.fleet.models_file import FleetModel
from llava_api.cli.fleet.supervisor import Fleet, Member
from llava_api.errors import Busy, NotLoaded, StartupError, Unavailable
from llava_api.settings import Settings
from tests.support.clock import Clock
from tests.support.waiting import until


class ScriptedServer:
    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.ensure_future(self.wait())

    async def wait(self) -> str:
        return await self.end

    async def until_ready(self) -> None:
        await asyncio.wait({self.ready, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if self.ended.done():
            raise StartupError(self.ended.result())

    def terminate(self) -> None:
        self.crash("")

    def crash(self, reason: str) -> None:
        if not self.end.done():
            self.end.set_result(reason)


class Machine:
    """A fleet whose servers get ready at once, unless their name is in ``slow``."""

    running: asyncio.Task[str]

    def __init__(
        self, needs: Mapping[str, Mapping[str, float]], capacity: Mapping[str, float], idle: float = 0
    ) -> None:
        self.clock = Clock()
        self.slow: set[str] = set()
        self.broken: dict[str, str] = {}
        """Model -> why it cannot start."""
        self.short_lived: set[str] = set()
        """Models whose servers end as soon as they are ready."""
        self.started: list[ScriptedServer] = []
        members = [
            Member(FleetModel(model=name, name=name, settings=Settings(), idle_seconds=idle), dict(needs[name]))
            for name in needs
        ]
        self.fleet = Fleet(members, capacity, cast(Any, self.start), self.listed, self.clock)
        self.members = {member.model.name: member for member in members}

    async def start(self, member: Member) -> ScriptedServer:
        name = member.model.name
        server = ScriptedServer(name)
        self.started.append(server)
        if name in self.broken:
            server.crash(self.broken[name])
        elif name not in self.slow:
            server.ready.set_result(None)
        return server

    async def listed(self, member: Member) -> None:
        if member.model.name in self.short_lived:
            self.started[-1].crash("it was killed")
            await asyncio.wait({self.started[-1].ended})

    def starts(self) -> list[str]:
        return [server.name for server in self.started]

    def states(self) -> dict[str, str]:
        return {name: str(member.state) for name, member in self.members.items()}

    async def ask(self, name: str) -> str:
        async with self.fleet.lease(self.members[name]) as server:
            await asyncio.sleep(0)
            assert not server.ended.done(), "unloaded during a request"
            return name


@asynccontextmanager
async def machine(
    needs: Mapping[str, Mapping[str, float]], capacity: Mapping[str, float] | None = None, idle: float = 0
) -> AsyncIterator[Machine]:
    made = Machine(needs, capacity or {"memory": 10, "group": 1}, idle)
    made.running = asyncio.create_task(made.fleet.run())
    try:
        yield made
    finally:
        await made.fleet.close()
        made.running.cancel()


SMALL: Mapping[str, Mapping[str, float]] = {"a": {"memory": 4}, "b": {"memory": 4}, "c": {"memory": 4}}
GROUP: Mapping[str, Mapping[str, float]] = {"a": {"group": 1}, "b": {"group": 1}}


async def test_the_first_request_loads_the_model_and_waits() -> None:
    async with machine(SMALL) as box:
        box.slow = {"a"}
        asking = [asyncio.create_task(box.ask("a")) for _ in range(3)]
        await until(lambda: box.started)
        assert box.states() == {"a": "loading", "b": "unloaded", "c": "unloaded"}
        assert not any(one.done() for one in asking)
        box.started[0].ready.set_result(None)
        assert await asyncio.gather(*asking) == ["a", "a", "a"]
        assert box.starts() == ["a"]


async def test_the_least_recently_used_is_unloaded_if_memory_does_not_hold_all() -> None:
    async with machine(SMALL) as box:
        for name in ("a", "b", "a"):
            box.clock.now += 1
            await box.ask(name)
        assert box.states() == {"a": "ready", "b": "ready", "c": "unloaded"}
        await box.ask("c")
        assert box.states() == {"a": "ready", "b": "unloaded", "c": "ready"}


async def test_an_idle_model_is_unloaded_before_a_busy_one() -> None:
    async with machine(SMALL) as box:
        await box.ask("a")
        box.clock.now += 1
        async with box.fleet.lease(box.members["b"]), box.fleet.lease(box.members["a"]):
            pass
        async with box.fleet.lease(box.members["a"]):
            box.clock.now += 1
            await box.ask("b")
            box.clock.now += 1
            await box.ask("c")
            assert box.states() == {"a": "ready", "b": "unloaded", "c": "ready"}


async def test_a_model_that_fits_unloads_no_other() -> None:
    needs = {"a": {"gpu 0": 0.5}, "b": {"gpu 1": 0.9}, "c": {"gpu 0": 0.4}}
    async with machine(needs, {"gpu 0": 1, "gpu 1": 1}) as box:
        for name in needs:
            await box.ask(name)
        assert set(box.states().values()) == {"ready"}


async def test_a_model_larger_than_the_machine_is_left_to_its_own_server_to_judge() -> None:
    async with machine({"a": {"memory": 40}}) as box:
        assert await box.ask("a") == "a"


async def test_a_request_is_finished_before_its_model_is_unloaded() -> None:
    async with machine(GROUP) as box:
        async with box.fleet.lease(box.members["a"]) as server:
            other = asyncio.create_task(box.ask("b"))
            await until(lambda: box.states()["a"] == "unloading")
            assert not server.ended.done()
            assert box.starts() == ["a"]
        assert await other == "b"
        assert box.states() == {"a": "unloaded", "b": "ready"}


async def test_two_exclusive_models_under_load_both_answer_everything_and_neither_starves() -> None:
    async with machine(GROUP) as box:
        answers = await asyncio.gather(*[box.ask(name) for name in ["a", "b"] * 50])
        assert answers == ["a", "b"] * 50
        # All requests that wait for a model are answered when it is loaded.
        assert box.starts() == ["a", "b"]

        async def keep_asking(name: str) -> None:
            for _ in range(20):
                await box.ask(name)

        async with asyncio.timeout(5):
            await asyncio.gather(*[keep_asking(name) for name in ("a", "a", "b", "b")])


async def test_what_waits_longest_is_loaded_first() -> None:
    async with machine({name: {"group": 1} for name in "abc"}) as box:
        async with box.fleet.lease(box.members["a"]):
            asking = []
            for name in ("c", "b"):
                asking.append(asyncio.create_task(box.ask(name)))
                await asyncio.sleep(0)
                box.clock.now += 1
        await asyncio.gather(*asking)
        assert box.starts() == ["a", "c", "b"]


async def test_an_idle_time_unloads() -> None:
    async with machine(SMALL, idle=60) as box:
        async with box.fleet.lease(box.members["a"]):
            box.clock.now += 100
            box.fleet.step()
            assert box.states()["a"] == "ready"
        box.clock.now += 59
        assert box.fleet.step() == pytest.approx(1)
        assert box.states()["a"] == "ready"
        box.clock.now += 1
        box.fleet.changed.set()
        await until(lambda: box.states()["a"] == "unloaded")


async def test_a_request_that_has_gone_loads_nothing() -> None:
    async with machine(GROUP) as box:
        async with box.fleet.lease(box.members["a"]):
            asking = asyncio.create_task(box.ask("b"))
            await until(lambda: box.states()["a"] == "unloading")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: box.states()["a"] == "unloaded")
        assert box.starts() == ["a"]


async def test_a_request_waits_no_longer_than_a_request_may_take() -> None:
    async with machine(SMALL) as box:
        box.slow = {"a"}
        with pytest.raises(Unavailable, match="The model a is still loading: ask again later") as raised:
            async with box.fleet.lease(box.members["a"], 0.01):
                pass
        assert raised.value.code == "request_timeout"
        assert not box.members["a"].waiting


async def test_a_load_that_hangs_is_ended_and_gives_its_place_back() -> None:
    async with machine(GROUP) as box:
        box.slow = {"a"}
        box.members["a"].model.load_seconds = 0.01
        asking = asyncio.create_task(box.ask("a"))
        await until(lambda: box.started)
        assert await box.ask("b") == "b"
        with pytest.raises(NotLoaded):
            await asking
        assert box.started[0].ended.done()
        assert box.members["a"].reason == "it was not ready within 0.01 s (load_seconds in the models' file)"


async def test_requests_beyond_the_queue_are_refused_while_the_model_loads() -> None:
    async with machine(SMALL) as box:
        box.slow = {"a"}
        box.members["a"].model.settings = Settings(max_waiting_requests=2, max_num_seqs=1)
        asking = [asyncio.create_task(box.ask("a")) for _ in range(3)]
        await until(lambda: len(box.members["a"].waiting) == 3)
        with pytest.raises(Busy) as raised:
            await box.ask("a")
        assert raised.value.code == "queue_full"
        box.started[0].ready.set_result(None)
        assert await asyncio.gather(*asking) == ["a", "a", "a"]


async def test_a_request_that_goes_in_the_moment_it_may_begin_keeps_no_place() -> None:
    async with machine(SMALL) as box:
        box.slow = {"a"}
        asking = asyncio.create_task(box.ask("a"))
        await until(lambda: box.started)
        member = box.members["a"]
        box.fleet.serve(member)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert member.leases == 0


async def test_a_server_that_ends_as_soon_as_it_is_ready_is_a_failed_load() -> None:
    async with machine(SMALL) as box:
        box.short_lived = {"a"}
        with pytest.raises(NotLoaded):
            await box.ask("a")
        assert box.members["a"].reason == "it was killed"
        assert box.members["a"].leases == 0


async def test_a_server_that_is_just_being_started_is_ended_with_the_fleet() -> None:
    async with machine(SMALL) as box:
        starting = asyncio.Event()
        start = box.fleet.start

        async def slow_start(member: Member) -> Child:
            await starting.wait()
            return await start(member)

        box.fleet.start = slow_start
        asking = asyncio.create_task(box.ask("a"))
        await until(lambda: box.states()["a"] == "loading")
        closing = asyncio.create_task(box.fleet.close())
        await asyncio.sleep(0)
        box.running.cancel()
        starting.set()
        async with asyncio.timeout(5):
            await closing
        assert box.started[0].ended.done()
        with pytest.raises(Unavailable):
            await asking


async def test_a_model_that_cannot_start_gives_the_reason_and_is_tried_again_later() -> None:
    async with machine(SMALL) as box:
        box.broken = {"a": "out of memory: serve a smaller checkpoint"}
        answers = await asyncio.gather(box.ask("a"), box.ask("a"), return_exceptions=True)
        for error in answers:
            assert isinstance(error, NotLoaded)
            # The reason may name paths of the machine.
            assert error.message == "The model a could not be loaded; the server's log says why."
            assert error.retry_after_seconds == 2
        assert box.members["a"].reason == "out of memory: serve a smaller checkpoint"
        with pytest.raises(NotLoaded):
            await box.ask("a")
        assert box.starts() == ["a"]
        assert await box.ask("b") == "b"
        box.clock.now += 2
        box.broken = {}
        assert await box.ask("a") == "a"


async def test_a_crash_takes_no_other_model_along_and_is_repaired_with_back_off() -> None:
    async with machine(SMALL) as box:
        await box.ask("a")
        await box.ask("b")
        box.started[0].crash("the engine was lost")
        await until(lambda: box.starts() == ["a", "b", "a"])
        await until(lambda: box.states() == {"a": "ready", "b": "ready", "c": "unloaded"})
        assert not box.started[1].ended.done()
        delays = []
        for _ in range(6):
            box.started[-1].crash("the engine was lost")
            await until(lambda: box.states()["a"] == "failed")
            delays.append(box.members["a"].retry_at - box.clock.now)
            waiting = asyncio.create_task(box.ask("a"))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            box.clock.now += delays[-1]
            box.fleet.changed.set()
            assert await waiting == "a"
        assert delays == [2, 4, 8, 16, 30, 30]


async def test_a_crashed_model_takes_no_place_from_the_one_that_came_after_it() -> None:
    async with machine(GROUP) as box:
        await box.ask("a")
        box.slow = {"b"}
        asking = asyncio.create_task(box.ask("b"))
        await until(lambda: box.starts() == ["a", "b"])
        box.started[1].ready.set_result(None)
        await asking
        box.fleet.fail(box.members["a"], "the engine was lost", served=True)
        await until(lambda: box.states() == {"a": "unloaded", "b": "ready"})
        assert box.starts() == ["a", "b"]


async def test_until_memory_is_known_one_model_is_loaded_at_a_time() -> None:
    async with machine(SMALL) as box:
        box.fleet.judged = False
        assert await box.ask("a") == "a"
        other = asyncio.create_task(box.ask("b"))
        await asyncio.sleep(0.01)
        assert box.states() == {"a": "ready", "b": "unloaded", "c": "unloaded"}
        box.fleet.judged = True
        box.fleet.changed.set()
        assert await other == "b"


async def test_unload() -> None:
    async with machine(SMALL) as box:
        await box.ask("a")
        assert box.states()["a"] == "ready"
        await box.fleet.unload(box.members["a"])
        assert box.states()["a"] == "unloaded"
        box.slow = {"a"}
        asking = asyncio.create_task(box.ask("a"))
        await until(lambda: box.states()["a"] == "loading")
        asking.cancel()
        await box.fleet.unload(box.members["a"])
        assert box.states()["a"] == "unloaded"


async def test_the_end_ends_all_and_refuses_who_waits() -> None:
    async with machine(GROUP) as box:
        async with box.fleet.lease(box.members["a"]):
            other = asyncio.create_task(box.ask("b"))
            await until(lambda: box.states()["a"] == "unloading")
            await box.fleet.close()
            with pytest.raises(Unavailable, match="stopping"):
                await other
            with pytest.raises(Unavailable, match="stopping"):
                await box.ask("a")
        assert all(server.ended.done() for server in box.started)


def full_disk() -> TextIO:
    return open("/dev/full", "w", buffering=1)


async def test_a_full_disk_for_the_log_does_not_block_a_models_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = "for _ in range(20_000): print('x' * 100)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", writes, stdout=PIPE)
    news, other = socket.socketpair(type=socket.SOCK_DGRAM)
    news.setblocking(False)
    with other, full_disk() as full:
        monkeypatch.setattr(sys, "stderr", full)
        model = FleetModel(model="a", name="a", settings=Settings())
        try:
            async with asyncio.timeout(20):
                reason = await Child(model, tmp_path / "0.sock", news, process).ended
        finally:
            monkeypatch.undo()
            with suppress(ProcessLookupError):
                process.kill()
            with suppress(OSError):
                full.close()
    assert reason.startswith("its server ended with exit code 0")
