"""The same work asked for several times at once is done once."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(slots=True)
class Flight(Generic[Value]):
    task: "asyncio.Task[Value]"
    waiting: int = 0


class SingleFlight(Generic[Value]):
    """Work in progress, by key. It is cancelled when the last of those who wait for it has gone."""

    def __init__(self) -> None:
        self.flights: dict[Hashable, Flight[Value]] = {}

    async def do(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """The result of ``work``, begun here or by somebody else; or its error."""
        flight = self.flights.get(key)
        if flight is None:
            flight = self.flights[key] = Flight(asyncio.ensure_future(work()))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if self.flights.get(key) is flight and (flight.task.done() or not flight.waiting):
                del self.flights[key]
            if not flight.waiting:
                flight.task.cancel()
