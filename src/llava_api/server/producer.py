"""Makes a reply in a task of its own, which is all that has to be ended when a request ends early."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import BaseModel

from llava_api.errors import ApiError, ErrorCode, Unavailable

TIMED_OUT = (
    "The request took longer than the {seconds:g} seconds this server gives it: ask for a shorter answer (max_tokens), "
    "or try again when the server is less busy."
)
READ_AHEAD = 16
"""Items that may wait for a slow reader before the engine is asked for no more."""
Body = TypeVar("Body", bound=BaseModel)


class Reply(Protocol):
    """An answer in the making, in the form of one endpoint."""

    @property
    def streamed(self) -> bool: ...

    @property
    def end_of_stream(self) -> str | None:
        """Data of the event after the last item of a stream that did not fail; None for no such event."""

    async def whole(self) -> BaseModel: ...

    def items(self) -> AsyncGenerator[BaseModel, None]: ...

    def failure(self, error: ApiError) -> Iterable[BaseModel]:
        """The last items of a stream that failed."""


class Deadline:
    """``seconds`` for one request, counted from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.time = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Raises Unavailable as soon as the time is up."""
        clock = asyncio.timeout_at(self.time)
        try:
            async with clock:
                yield
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise Unavailable(TIMED_OUT.format(seconds=self.seconds), code=ErrorCode.REQUEST_TIMEOUT) from error


class Stopped(Exception):
    """The reply was given up before its end."""


@dataclass(frozen=True, slots=True)
class End:
    error: Exception | None
    """What ended the reply early."""


class ReplyProducer:
    """Prepares a request, generates the reply, and keeps up to ``READ_AHEAD`` items of it ready for the reader.

    All of it runs in one task, to its end or to the deadline, whether or not anybody reads. The task is cancelled once
    at most: the abort of a request inside the engine is awaited, and a second cancellation would break it off.
    """

    def __init__(self, prepare: Callable[[Body], Awaitable[Reply | BaseModel]], body: Body, deadline: Deadline) -> None:
        self.loop = asyncio.get_running_loop()
        self.reply: Reply | None = None
        """Set if the reply is streamed, when its generation begins."""
        self.begun = asyncio.Event()
        self.ready: list[BaseModel] = []
        self.end: End | None = None
        self.room = asyncio.Event()
        self.reader: asyncio.Future[None] | None = None
        """Pending while the reader waits."""
        self.wait_ends_at = 0.0
        self.alarm: asyncio.TimerHandle | None = None
        self.task = asyncio.create_task(self.run(prepare, body, deadline))

    async def run(
        self, prepare: Callable[[Body], Awaitable[Reply | BaseModel]], body: Body, deadline: Deadline
    ) -> None:
        end = End(Stopped())
        try:
            async with deadline.enforced():
                reply = await prepare(body)
                # The images' files and their base64 can be freed: only their pixels are needed from here on.
                del body
                if isinstance(reply, BaseModel):
                    self.ready.append(reply)
                elif not reply.streamed:
                    self.ready.append(await reply.whole())
                else:
                    self.reply = reply
                    self.begun.set()
                    async with aclosing(reply.items()) as items:
                        async for item in items:
                            self.ready.append(item)
                            self.wake_reader()
                            while len(self.ready) >= READ_AHEAD:
                                self.room.clear()
                                await self.room.wait()
            end = End(None)
        except Exception as error:
            end = End(error)
        finally:
            self.end = end
            self.begun.set()
            self.wake_reader()

    async def first(self, seconds: float) -> list[BaseModel] | End | None:
        """The whole reply, or a stream's first items; None if a stream has begun and brought nothing in ``seconds``."""
        await self.begun.wait()
        return await self.next(seconds)

    async def next(self, seconds: float) -> list[BaseModel] | End | None:
        """All items that are ready, one at least; None if nothing came in ``seconds``."""
        if not self.ready and self.end is None:
            self.reader = self.loop.create_future()
            self.set_alarm(self.loop.time() + seconds)
            await self.reader
        if self.ready:
            items, self.ready = self.ready, []
            self.room.set()
            return items
        return self.end

    def wake_reader(self) -> None:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    def set_alarm(self, time: float) -> None:
        """One timer serves many waits, since it is moved only when it goes off: a timer for each costs 3 us a token."""
        self.wait_ends_at = time
        if self.alarm is not None and self.alarm.when() <= time:
            return
        if self.alarm is not None:
            self.alarm.cancel()
        self.alarm = self.loop.call_at(time, self.on_alarm)

    def on_alarm(self) -> None:
        self.alarm = None
        if self.loop.time() < self.wait_ends_at:
            self.set_alarm(self.wait_ends_at)
        else:
            self.wake_reader()

    def cancel(self) -> None:
        if not self.task.cancelling():
            self.task.cancel()

    async def close(self) -> None:
        """Returns once the task has ended and given back what it held."""
        if self.alarm is not None:
            self.alarm.cancel()
        self.cancel()
        await asyncio.wait({self.task})
