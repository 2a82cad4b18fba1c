"""The fleet as the router sees it: one backend for each model, which is started for a request if need be."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Any

import orjson

from llava_api.cli.fleet import child
from llava_api.cli.fleet.control import SOCKET, control_socket
from llava_api.cli.fleet.models_file import FleetModel
from llava_api.cli.fleet.needs import MEMORY, judge, weigh
from llava_api.cli.fleet.supervisor import Fleet, Member, State
from llava_api.errors import ErrorCode, Unavailable
from llava_api.limits.account import Account
from llava_api.limits.table import LimitTable
from llava_api.limits.windows import FLEET, Windows, of_model
from llava_api.routing.backends import Backend, Wanted
from llava_api.routing.connections import NETWORK_ERRORS, Connections
from llava_api.server.lifespan import watch_files
from llava_api.settings import Settings
from llava_api.telemetry.fleet_metrics import FleetMetrics
from llava_api.telemetry.router_metrics import RouterMetrics

OF_LIMITS = {"requests_per_minute", "tokens_per_minute", "images_per_minute", "key_limits_file"}
END_SECONDS = 10
"""A server that takes no requests, because it has lost its engine, ends before."""
ANSWER_SECONDS = 5


class FleetBackends:
    """Raises StartupError if the machine lacks GPUs that the models need, or for a wrong file of limits.

    ``keys``: name=key, for the models' servers, which check them too; the last is the fleet's own. Empty without keys.
    ``control``: the socket that ``control_socket`` answers.
    """

    complete = True

    def __init__(
        self,
        models: Sequence[FleetModel],
        settings: Settings,
        folder: Path,
        control: socket,
        keys: Sequence[str],
        metrics: FleetMetrics,
    ) -> None:
        members, capacity = weigh(models)
        self.fleet = Fleet(members, capacity, self.start_server, self.list_models)
        self.settings, self.folder, self.control, self.keys = settings, folder, control, keys
        self.windows = Windows()
        self.limits = {member.model.name: LimitTable(member.model.settings) for member in members}
        self.metrics: RouterMetrics = metrics
        self.fleet_metrics = metrics
        metrics.sample_backends = self.sample
        metrics.server_pages = self.server_pages
        self.connections = Connections(settings)
        self.created = int(time.time())
        self.cards: dict[str, dict[str, Any]] = {}
        """The models as their servers listed them last."""
        self.starts: Counter[str] = Counter()
        self.at_end = AsyncExitStack()

    # What the router asks

    def models(self) -> list[dict[str, Any]]:
        return [
            self.cards.get(name, self.card(name, member)) | {"status": member.state}
            for member in self.fleet.members
            for name in member.model.names
        ]

    def card(self, name: str, member: Member) -> dict[str, Any]:
        parent = None if name == member.model.name else member.model.name
        card = {"id": name, "object": "model", "created": self.created, "owned_by": "llava-api"}
        return card | {"root": name, "parent": parent}

    def running(self) -> list[Backend]:
        return [self.backend_of(member) for member in self.fleet.members if member.state is State.READY]

    @asynccontextmanager
    async def place(self, wanted: Wanted, tried: Collection[Backend]) -> AsyncIterator[Backend]:
        member = self.fleet.find(wanted.model)
        assert member is not None
        if member.state is not State.READY:
            await self.check_rates(member, wanted.caller)
        while True:
            async with self.fleet.lease(member, self.settings.request_timeout_seconds) as server:
                backend = self.backend_of(member)
                if backend not in tried:
                    yield backend
                    return
            # It has failed the request, so it ends.
            ended, _ = await asyncio.wait({server.ended}, timeout=END_SECONDS)
            if not ended:
                name = member.model.name
                raise Unavailable(f"The model {name} takes no requests now.", code=ErrorCode.MODEL_NOT_READY)
            await asyncio.sleep(0)

    async def check_rates(self, member: Member, caller: str) -> None:
        """Raises RateLimited for a request that its model's server would refuse, for which nothing is loaded."""
        settings = member.model.settings
        if settings.rate_limit_redis_url is not None:
            return
        limits = self.limits[member.model.name].limits_of(caller)
        await Account(of_model(caller, self.counted_alone(member)), limits=limits, windows=self.windows).check()

    def counted_alone(self, member: Member) -> str:
        """The model's name if it has limits of its own, which are compared with its own requests."""
        own = member.model.settings
        differs = any(getattr(own, name) != getattr(self.settings, name) for name in OF_LIMITS)
        return member.model.name if differs else ""

    def backend_of(self, member: Member) -> Backend:
        name = member.model.name
        return Backend(f"{name}#{self.starts[name]}", f"unix:{self.address(member)}", logs_here=True)

    def address(self, member: Member) -> Path:
        return self.folder / f"{self.fleet.members.index(member)}.sock"

    # What the fleet asks

    async def start_server(self, member: Member) -> child.Child:
        self.starts[member.model.name] += 1
        counts = FLEET + str(self.folder / SOCKET)
        if alone := self.counted_alone(member):
            counts += f"#{alone}"
        return await child.start(member.model, self.address(member), self.keys, counts)

    async def list_models(self, member: Member) -> None:
        with suppress(TimeoutError, ValueError, KeyError, TypeError, *NETWORK_ERRORS):
            self.cards |= {card["id"]: card for card in orjson.loads(await self.get(member, "/v1/models"))["data"]}

    async def get(self, member: Member, path: str) -> bytes:
        key = self.keys[-1].partition("=")[2] if self.keys else ""
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        async with asyncio.timeout(ANSWER_SECONDS):
            return (await self.connections.get(self.backend_of(member), path, headers))[1]

    # Metrics

    def sample(self) -> None:
        metrics = self.fleet_metrics
        for member in self.fleet.members:
            name = member.model.name
            for state in State:
                metrics.model_state.labels(name, state).set(member.state is state)
            metrics.backend_up.labels(name, name).set(member.state is State.READY)
            metrics.backend_requests.labels(name).set(member.leases)
            metrics.model_waiting.labels(name).set(len(member.waiting))
            failing = bool(member.reason) and member.state in (State.FAILED, State.LOADING)
            metrics.model_failing.labels(name).set(failing)

    def server_pages(self) -> Mapping[str, str]:
        return asyncio.run_coroutine_threadsafe(self.read_metrics(), self.loop).result()

    async def read_metrics(self) -> Mapping[str, str]:
        """Of the servers that answer."""
        ready = [member for member in self.fleet.members if member.state is State.READY]
        pages = await asyncio.gather(*[self.get(member, "/metrics") for member in ready], return_exceptions=True)
        found = zip(ready, pages, strict=True)
        return {member.model.name: page.decode() for member, page in found if isinstance(page, bytes)}

    # From start to end

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.at_end.enter_async_context(control_socket(self.fleet, self.windows, self.control))
        watching = asyncio.create_task(watch_files([table.refresh for table in self.limits.values()]))
        self.at_end.callback(watching.cancel)
        if MEMORY in self.fleet.capacity:
            self.fleet.judged = False
            judging = asyncio.create_task(judge(self.fleet))
            self.at_end.callback(judging.cancel)

    async def supervise(self) -> str:
        return await self.fleet.run()

    async def close(self) -> None:
        await self.fleet.close()
        await self.connections.close()
        await self.at_end.aclose()
