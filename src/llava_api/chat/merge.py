"""Several streams as one, in the order in which things come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Next(Generic[Item]):
    item: Item


@dataclass(frozen=True, slots=True)
class Ended:
    error: Exception | None


async def merge(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Closing this closes all of them, and so does the first that fails, whose error is raised."""
    # A stream waits until its last item was taken: memory stays bounded.
    waiting: asyncio.Queue[Next[Item] | Ended] = asyncio.Queue(maxsize=1)

    async def pump(stream: AsyncGenerator[Item, None]) -> None:
        error: Exception | None = None
        try:
            async with aclosing(stream):
                async for item in stream:
                    await waiting.put(Next(item))
        except Exception as raised:
            error = raised
        await waiting.put(Ended(error))

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    running = len(pumps)
    try:
        while running:
            came = await waiting.get()
            if isinstance(came, Next):
                yield came.item
                continue
            running -= 1
            if came.error is not None:
                raise came.error
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
