"""Several streams as one, in the order in which their items come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merge(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Closing this closes all of the streams, and so does the first that fails, whose error is raised."""
    # A stream waits until its last item is taken, so that memory is bounded.
    came: asyncio.Queue[list[Item] | Exception | None] = asyncio.Queue(maxsize=1)

    async def forward(stream: AsyncGenerator[Item, None]) -> None:
        end: Exception | None = None
        try:
            async with aclosing(stream):
                async for item in stream:
                    await came.put([item])
        except Exception as error:
            end = error
        await came.put(end)

    tasks = [asyncio.create_task(forward(stream)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            found = await came.get()
            if isinstance(found, list):
                yield found[0]
            elif found is None:
                running -= 1
            else:
                raise found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
