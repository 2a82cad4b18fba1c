"""What one request has from its start to its end, wherever it is answered: its time, and its share of the memory."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from fastapi import Request

from llava_api.errors import RequestTimedOut
from llava_api.limits.memory import Holding
from llava_api.server.feed import Feed

TIMED_OUT = (
    "The request took longer than the {seconds:g} seconds this server gives it: ask for a shorter answer (max_tokens), "
    "or try again when the server is less busy."
)
Item = TypeVar("Item")


class Life:
    """Of a request that is to be answered within ``seconds`` from now."""

    def __init__(self, seconds: float, held: Holding) -> None:
        self.seconds = seconds
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.held = held
        self.streaming: Feed[Any] | None = None

    def timed_out(self) -> RequestTimedOut:
        return RequestTimedOut(TIMED_OUT.format(seconds=self.seconds))

    def feed(self, made: AsyncGenerator[Item, None]) -> Feed[Item]:
        """From here on the request lives until the feed ends."""
        feed = Feed(made, self.deadline, self.timed_out)
        feed.task.add_done_callback(lambda _: self.held.release())
        self.streaming = feed
        return feed

    def end(self) -> None:
        """Everything is given back, now or at the loop's next turns; may be called more than once."""
        if self.streaming is not None:
            self.streaming.cancel()
        self.held.release()

    async def over(self) -> None:
        """Returns when everything is given back, and what was made is put down."""
        if self.streaming is not None:
            await self.streaming.close()


def life_of(request: Request) -> Life:
    life: Life = request.state.life
    return life
