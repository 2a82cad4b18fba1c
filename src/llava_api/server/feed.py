"""A stream's items, made in a task of its own, so that a wait for the next can be given up without harm to it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Ended:
    error: Exception | None
    """What ended it early."""


class Feed(Generic[Item]):
    """Runs ``made`` to its end, or to ``deadline`` (the loop's time), one item ahead of its reader.

    What ``made`` holds is given back at its end, whether or not a reader is still there to hear of it.
    """

    def __init__(self, made: AsyncGenerator[Item, None], deadline: float, timed_out: Callable[[], Exception]) -> None:
        self.items: asyncio.Queue[Item | Ended] = asyncio.Queue(maxsize=1)
        self.task = asyncio.create_task(self.run(made, deadline, timed_out))

    async def run(self, made: AsyncGenerator[Item, None], deadline: float, timed_out: Callable[[], Exception]) -> None:
        error: Exception | None = None
        clock = asyncio.timeout_at(deadline)
        try:
            async with clock, aclosing(made):
                async for item in made:
                    await self.items.put(item)
        except Exception as raised:
            error = timed_out() if clock.expired() else raised
        await self.items.put(Ended(error))

    async def next(self, timeout_seconds: float) -> Item | Ended | None:
        """None where nothing came in time."""
        try:
            return self.items.get_nowait()
        except asyncio.QueueEmpty:
            pass
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self.items.get()
        except TimeoutError:
            return None

    def cancel(self) -> None:
        self.task.cancel()

    async def close(self) -> None:
        """Returns when everything is given back."""
        self.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
