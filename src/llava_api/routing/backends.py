"""What the router asks of those who know the servers behind it: ``llava-api route`` and ``llava-api fleet``."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from llava_api.routing.connections import Connections
    from llava_api.telemetry.router_metrics import RouterMetrics


@dataclass(frozen=True, slots=True)
class Backend:
    """One running server. A server that is started again is another backend, with another name."""

    name: str
    """In logs and metrics."""
    address: str
    """http://HOST:PORT, https://HOST:PORT, or unix:/PATH."""
    host: str = ""
    """HOST:PORT for its Host header and its certificate, if its address is that of one of several replicas."""
    logs_here: bool = False
    """Its log is part of the router's, so that the router does not log a request that it answers."""


class BackendLost(Exception):
    """A backend cannot be reached, ended, or takes no requests now, before any of its answer was passed on.

    ``was_answering``: it had got the request.
    """

    def __init__(self, reason: str, was_answering: bool = False) -> None:
        super().__init__(reason)
        self.was_answering = was_answering


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants of a backend."""

    model: str
    """One of ``Backends.models``, a LoRA adapter's name too."""
    affinity: bytes = b""
    """Requests with the same bytes go to the same replica if possible, because its caches hold what they share."""
    keeper: Backend | None = None
    """Stores the response that the request continues."""
    caller: str = ""
    """For limits: as ``Exchange.caller``."""


class Backends(Protocol):
    metrics: "RouterMetrics"
    connections: "Connections"

    def models(self) -> Sequence[dict[str, Any]]:
        """The objects of ``GET /v1/models``, as their servers wrote them, each with a ``status``: ready, loading...

        A model that has not been loaded has ``id``, ``object``, ``created``, ``owned_by`` and ``status`` at least.
        """

    @property
    def complete(self) -> bool:
        """Whether ``models`` are all. If not, a request for another model may find it later."""

    def running(self) -> Sequence[Backend]:
        """Backends that answer requests now, of all models."""

    def place(self, wanted: Wanted, tried: Collection[Backend]) -> AbstractAsyncContextManager[Backend]:
        """The backend for one request, which counts as busy with it until the block ends.

        Entering may take as long as a model loads; a streamed request gets comments meanwhile. It may be cancelled.
        ``tried``: backends that were lost by this request. BackendLost raised in the block reports one more.
        Raises ApiError: Unavailable with a Retry-After if there is no other backend.
        """

    async def start(self) -> None:
        """Returns when requests can be taken. Raises StartupError. Cancelled by a signal."""

    async def supervise(self) -> str:
        """Returns when no request will ever be answered again, with the reason; cancelled when the drain has ended."""

    async def close(self) -> None:
        """Ends all connections. No request is open. Called also if ``start`` has failed."""
