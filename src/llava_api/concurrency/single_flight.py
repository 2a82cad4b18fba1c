"""Work that several callers want at once is done once, at the earliest of their turns."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from llava_api.concurrency.admission import Admission, Slot

Value = TypeVar("Value")
Work = Callable[[], Coroutine[Any, Any, Value]]


class Flight(Generic[Value]):
    """Work in progress. It holds its slot until it has ended.

    When the last of those who wait for it has gone, it is cancelled: by anyio's cancellation, because that is the only
    one from which httpcore2 shields its clean-up. Work that cannot be stopped shields itself in the same way.
    """

    def __init__(self, slot: Slot, work: Work[Value]) -> None:
        self.slot = slot
        self.scope = anyio.CancelScope()
        self.task = asyncio.ensure_future(self.run(work))
        self.waiting = 0

    async def run(self, work: Work[Value]) -> Value:
        with self.scope:
            return await work()
        raise asyncio.CancelledError

    async def result(self) -> Value:
        """Wait for the result, or the error."""
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.scope.cancel()


class SingleFlight(Generic[Value]):
    """Does work of equal keys once at a time, in turns that ``admission`` decides."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.flights: dict[Hashable, Flight[Value]] = {}

    async def do(self, caller: str, work: Work[Value], key: Hashable = None) -> Value:
        """Wait for the caller's turn, then for the result of ``work``, or its error. Raises Busy.

        If work of the same ``key`` has begun already, this waits for its result and takes no turn.
        """
        return await (await self.join(caller, work, key)).result()

    async def join(self, caller: str, work: Work[Value], key: Hashable = None) -> Flight[Value]:
        """Wait until the work has begun. Raises Busy.

        Await ``Flight.result`` next: only those who wait for the result keep the work going.
        """
        key = object() if key is None else key
        flight = self.running(key)
        if flight is None:
            slot = await self.admission.enter(caller, key=key)
            flight = self.running(key)
            if flight is None:
                flight = self.flights[key] = Flight(slot, work)
                flight.task.add_done_callback(partial(self.end, key, flight))
            elif flight.slot is not slot:
                # Others began it after this entry had come to the queue and before its turn.
                slot.release()
        return flight

    def running(self, key: Hashable) -> Flight[Value] | None:
        flight = self.flights.get(key)
        return None if flight is None or flight.scope.cancel_called else flight

    def end(self, key: Hashable, flight: Flight[Value], task: "asyncio.Task[Value]") -> None:
        if self.flights.get(key) is flight:
            del self.flights[key]
        if not task.cancelled():
            # asyncio logs an error that nothing has looked at, as when all who waited have left.
            task.exception()
        flight.slot.release()
