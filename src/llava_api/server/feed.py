"""A stream's items, made in a task of its own, so that a wait for the next can be given up without harm to it."""

import asyncio
from collections import deque
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

    At its end, which waits for no reader, all that ``made`` holds is given back.
    """

    def __init__(self, made: AsyncGenerator[Item, None], deadline: float, timed_out: Callable[[], Exception]) -> None:
        self.items: deque[Item] = deque()
        self.ended: Ended | None = None
        self.came = asyncio.Event()
        self.room = asyncio.Event()
        self.task = asyncio.create_task(self.run(made, deadline, timed_out))

    async def run(self, made: AsyncGenerator[Item, None], deadline: float, timed_out: Callable[[], Exception]) -> None:
        clock = asyncio.timeout_at(deadline)
        error: Exception | None = RuntimeError("the stream was stopped")
        try:
            async with clock, aclosing(made):
                async for item in made:
                    self.items.append(item)
                    self.came.set()
                    while self.items:
                        self.room.clear()
                        await self.room.wait()
            error = None
        except Exception as raised:
            error = timed_out() if clock.expired() else raised
        finally:
            self.ended = Ended(error)
            self.came.set()

    async def next(self, timeout_seconds: float) -> Item | Ended | None:
        """None where nothing came in time."""
        if not self.items and self.ended is None:
            self.came.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self.came.wait()
            except TimeoutError:
                return None
        if self.items:
            self.room.set()
            return self.items.popleft()
        return self.ended

    def cancel(self) -> None:
        """Once: the engine's end of it must not be broken off."""
        if not self.task.cancelling():
            self.task.cancel()

    async def close(self) -> None:
        """Returns when everything is given back."""
        self.cancel()
        await asyncio.wait({self.task})
