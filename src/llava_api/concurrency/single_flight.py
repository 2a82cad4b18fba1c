"""Work that several callers want at once is done once, at the earliest of their turns."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from llava_api.concurrency.admission import Admission, Slot

Value = TypeVar("Value")


class Flight(Generic[Value]):
    """Work that has begun.

    ``ended``: done when the work has really ended. ``stop`` is called when the last of those who wait for the result
    has gone, and returns whether the work could be stopped.
    """

    def __init__(self, ended: "asyncio.Future[Value]", stop: Callable[[], bool]) -> None:
        self.ended = ended
        self.stop = stop
        self.stopped = False
        self.waiting = 0

    async def result(self) -> Value:
        """Wait for the result, or the error."""
        self.waiting += 1
        try:
            return await asyncio.shield(self.ended)
        finally:
            self.waiting -= 1
            if not self.waiting and not self.ended.done():
                self.stopped = self.stop()


class SingleFlight(Generic[Value]):
    """Does work of equal keys once at a time, in turns that ``admission`` decides."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.flights: dict[Hashable, Flight[Value]] = {}

    async def do(self, caller: str, begin: Callable[[], Flight[Value]], key: Hashable = None) -> Value:
        """Wait for the caller's turn, ``begin`` the work, and wait for its result, or its error. Raises Busy.

        If work of the same ``key`` has begun already, this waits for its result and takes no turn.
        """
        return await (await self.join(caller, begin, key)).result()

    async def join(self, caller: str, begin: Callable[[], Flight[Value]], key: Hashable = None) -> Flight[Value]:
        """Wait until the work has begun. Raises Busy.

        Await ``Flight.result`` next: only those who wait for the result keep the work going.
        """
        key = object() if key is None else key
        flight = self.running(key)
        if flight is None:
            slot = await self.admission.enter(caller, key=key)
            flight = self.running(key)
            if flight is None:
                flight = self.flights[key] = begin()
                flight.ended.add_done_callback(partial(self.end, key, flight, slot))
            else:
                # Others have begun it, with this slot or with one of their own.
                slot.decline()
        return flight

    def running(self, key: Hashable) -> Flight[Value] | None:
        flight = self.flights.get(key)
        return None if flight is None or flight.stopped else flight

    def end(self, key: Hashable, flight: Flight[Value], slot: Slot, ended: "asyncio.Future[Value]") -> None:
        if self.flights.get(key) is flight:
            del self.flights[key]
        if not ended.cancelled():
            # asyncio logs an error that nothing has looked at, as when all who waited have left.
            ended.exception()
        slot.release()


def cancellable(work: Coroutine[Any, Any, Value]) -> Flight[Value]:
    """Begin work that is cancelled when the last of those who wait for it has gone.

    By anyio's cancellation, not asyncio's: it is the only one from which httpcore2 shields its clean-up.
    """
    scope = anyio.CancelScope()

    async def run() -> Value:
        with scope:
            return await work
        raise asyncio.CancelledError

    def stop() -> bool:
        scope.cancel()
        return True

    return Flight(asyncio.ensure_future(run()), stop)
