"""The backends of ``llava-api route``: servers that run anywhere, each perhaps as several replicas behind one name."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from blake3 import blake3

from llava_api.errors import ErrorCode, StartupError, Unavailable
from llava_api.limits.keys import plain_key
from llava_api.routing.backends import Backend, BackendLost, Wanted
from llava_api.routing.connections import NETWORK_ERRORS, Connections
from llava_api.settings import Settings
from llava_api.telemetry.router_metrics import RouterMetrics

log = logging.getLogger("llava_api")

LOOK_SECONDS = 1.0
"""Between two questions to a backend whether it is ready. A request that fails at one asks at once."""
ANSWER_SECONDS = 2.0
MODELS_SECONDS = 10.0
"""Between two questions for a backend's models: adapters may come and go."""
NAMES_SECONDS = 5.0
"""Between two look-ups of a name."""
SILENT_SECONDS = 60.0
"""A backend that has listed no models for so long is no reason any more to answer 503 for an unknown name."""
BUSIER, LEEWAY = 1.25, 4
"""A replica with more than 1.25 times as many open requests as the mean, and 4 more, is passed over."""
DEFAULTS = {"object": "model", "created": 0, "owned_by": ""}
"""Of the objects of ``GET /v1/models``."""
NO_REPLICA = "No server of this model takes requests now: try again in a moment."


@dataclass(eq=False, slots=True)
class Replica:
    backend: Backend
    ready: bool | None = None
    """None: it has not been asked yet."""
    models: list[dict[str, Any]] = field(default_factory=list)
    """As it listed them last."""
    next_models: float = 0.0
    """When to ask for them again."""
    open_requests: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def is_silent(self) -> bool:
        return not self.models and time.monotonic() - self.since >= SILENT_SECONDS

    def serves(self, model: str) -> bool:
        return any(card["id"] == model for card in self.models)


class Replicas:
    """``addresses``: as --backend names them. ``key``: the file or folder of the key to list models with.

    ``sleeping``: models that may have no server until somebody asks for them, so that their requests wait for one.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        settings: Settings,
        metrics: RouterMetrics,
        key: Path | None,
        sleeping: Sequence[str] = (),
    ) -> None:
        self.addresses = addresses
        self.metrics = metrics
        self.metrics.sample_backends = self.sample
        self.connections = Connections(settings)
        self.key = key
        self.replicas: dict[Backend, Replica] = {}
        self.found: dict[str, list[Backend]] = {}
        """What each address was found to be last."""
        card = {"object": "model", "created": int(time.time()), "owned_by": "llava-api"}
        self.known: dict[str, dict[str, Any]] = {name: {"id": name} | card for name in sleeping}
        """All models that have been seen or named."""
        self.waiting = dict.fromkeys(sleeping, 0)
        """Requests that wait for a server."""
        self.most_seconds = settings.request_timeout_seconds
        self.next_names = 0.0
        """When to look the names up again."""
        self.complaints: set[tuple[str, str]] = set()
        """Addresses and what has been logged of them, so that it is logged once."""

    # What the router asks

    def models(self) -> list[dict[str, Any]]:
        ready = {card["id"] for one in self.replicas.values() if one.ready for card in one.models}
        return [card | {"status": "ready" if name in ready else "unreachable"} for name, card in self.known.items()]

    @property
    def complete(self) -> bool:
        return all(replica.models or replica.is_silent for replica in self.replicas.values())

    def running(self) -> list[Backend]:
        return [replica.backend for replica in self.replicas.values() if replica.ready]

    @asynccontextmanager
    async def place(self, wanted: Wanted, tried: Collection[Backend]) -> AsyncIterator[Backend]:
        end = time.monotonic() + self.most_seconds
        while (replica := self.choose(wanted, tried)) is None:
            if wanted.model not in self.waiting or time.monotonic() >= end:
                raise Unavailable(NO_REPLICA, code=ErrorCode.MODEL_NOT_READY)
            self.waiting[wanted.model] += 1
            try:
                await asyncio.sleep(LOOK_SECONDS)
            finally:
                self.waiting[wanted.model] -= 1
        replica.open_requests += 1
        try:
            yield replica.backend
        except BackendLost:
            await self.ask(replica)
            raise
        finally:
            replica.open_requests -= 1

    def choose(self, wanted: Wanted, tried: Collection[Backend]) -> Replica | None:
        """By rendezvous hashing with bounded load: each affinity has its own order of replicas."""
        ready = [one for one in self.replicas.values() if one.ready and one.serves(wanted.model)]
        # One that was lost and is ready has closed the connection, or has been started again.
        left = [one for one in ready if one.backend not in tried] or ready
        if not left:
            return None
        if keeper := next((one for one in left if one.backend == wanted.keeper), None):
            return keeper
        most = BUSIER * sum(one.open_requests for one in left) / len(left) + LEEWAY
        free = [one for one in left if one.open_requests <= most]
        if not wanted.affinity:
            return min(free, key=lambda one: one.open_requests)
        return max(free, key=lambda one: blake3(wanted.affinity + one.backend.address.encode()).digest())

    def sample(self) -> None:
        """Set the metrics of the backends."""
        self.metrics.backend_up.clear()
        self.metrics.backend_requests.clear()
        for name, waiting in self.waiting.items():
            self.metrics.waiting.labels(name).set(waiting)
        for replica in self.replicas.values():
            self.metrics.backend_requests.labels(replica.backend.name).set(replica.open_requests)
            for model in replica.models or [{"id": ""}]:
                self.metrics.backend_up.labels(model["id"], replica.backend.name).set(bool(replica.ready))

    # Looking after them

    async def start(self) -> None:
        """Returns when one backend is ready at least, or at once if models may sleep: requests wake them."""
        await self.look()
        if not self.running() and not self.waiting:
            log.info("waiting until a server is ready")
        while not self.running() and not self.waiting:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def supervise(self) -> str:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def close(self) -> None:
        await self.connections.close()

    async def look(self) -> None:
        if time.monotonic() >= self.next_names:
            self.next_names = time.monotonic() + NAMES_SECONDS
            await asyncio.gather(*map(self.look_up, self.addresses))
            found = [backend for address in self.addresses for backend in self.found.get(address, ())]
            self.replicas = {backend: self.replicas.get(backend) or Replica(backend) for backend in found}
        await asyncio.gather(*map(self.ask, self.replicas.values()))

    async def look_up(self, address: str) -> None:
        """Find one backend for each address of a name. Raises nothing: a name is unknown while nothing runs there."""
        parts = urlsplit(address)
        if parts.scheme == "unix":
            self.found[address] = [Backend(parts.path, address)]
            return
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self.complain(address, f"its name is not known: {getattr(error, 'strerror', None) or error}")
            return
        # A machine with addresses of both kinds is one replica.
        family = min((one[0] for one in found), key=lambda family: family != socket.AF_INET)
        hosts = sorted({str(one[4][0]) for one in found if one[0] == family})
        places = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
        # A server without keys accepts every address as its Host, but not every name.
        name = f"{parts.hostname}:{port}" if parts.scheme == "https" else ""
        self.found[address] = [Backend(place, f"{parts.scheme}://{place}", name) for place in places]

    async def ask(self, replica: Replica) -> None:
        """Ask a backend whether it is ready, and at times for its models."""
        ready, reason = False, ""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                ready = (await self.connections.get(replica.backend, "/health/ready"))[0] == 200
                if ready and time.monotonic() >= replica.next_models:
                    await self.list_models(replica)
        except (TimeoutError, ValueError, KeyError, TypeError, StartupError, *NETWORK_ERRORS) as error:
            reason = f": {error}" if str(error) else f": {error!r}"
        ready = ready and bool(replica.models)
        if ready != replica.ready:
            text = "is ready" if ready else f"takes no requests{reason}"
            log.log(logging.INFO if ready else logging.WARNING, "backend %s %s", replica.backend.name, text)
        replica.ready = ready
        if replica.is_silent:
            text = f"no models listed for {SILENT_SECONDS:g} s: those that only it has are unknown (404) until it does"
            self.complain(replica.backend.name, text)

    async def list_models(self, replica: Replica) -> None:
        """Raises StartupError for a file without a key, and ValueError."""
        headers = []
        if self.key is not None:
            # Read each time, because keys are exchanged while the router runs.
            key = await asyncio.to_thread(plain_key, self.key)
            headers = [(b"authorization", f"Bearer {key}".encode())]
        status, body = await self.connections.get(replica.backend, "/v1/models", headers)
        if status == 401:
            raise ValueError("it lists its models only with an API key: name one with --backend-key-file")
        if status == 200:
            # Not every server's cards have all fields that the router's own answers need.
            replica.models = [DEFAULTS | card for card in orjson.loads(body)["data"] if isinstance(card["id"], str)]
            replica.next_models = time.monotonic() + MODELS_SECONDS
            self.known |= {card["id"]: card for card in replica.models}
            self.forget_adapters()

    def forget_adapters(self) -> None:
        """Those that have been unloaded: no server lists them, but one lists their model."""
        listed = {card["id"] for one in self.replicas.values() for card in one.models}
        for name, card in list(self.known.items()):
            if name not in listed and name not in self.waiting and card.get("parent") in listed:
                del self.known[name]

    def complain(self, address: str, reason: str) -> None:
        if (address, reason) not in self.complaints:
            self.complaints.add((address, reason))
            log.warning("backend %s: %s", address, reason)
