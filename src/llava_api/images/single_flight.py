"""The same work asked for several times at once is done once."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio

Value = TypeVar("Value")


@dataclass(slots=True)
class Flight(Generic[Value]):
    task: "asyncio.Task[Value]"
    scope: anyio.CancelScope
    waiting: int = 0


class SingleFlight(Generic[Value]):
    """Work in progress, by key. It is cancelled when the last of those who wait for it has gone.

    By anyio's cancellation, not asyncio's: httpcore shields its clean-up from that one alone, and where a connection is
    cancelled while it is being closed, it and its place in httpcore's pool are lost for good.
    """

    def __init__(self) -> None:
        self.flights: dict[Hashable, Flight[Value]] = {}

    async def do(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """The result of ``work``, begun here or by somebody else; or its error."""
        flight = self.flights.get(key)
        if flight is None:
            scope = anyio.CancelScope()
            flight = self.flights[key] = Flight(asyncio.ensure_future(within(scope, work)), scope)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if self.flights.get(key) is flight and (flight.task.done() or not flight.waiting):
                del self.flights[key]
            if not flight.waiting:
                flight.scope.cancel()


async def within(scope: anyio.CancelScope, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
    with scope:
        return await work()
    raise asyncio.CancelledError
