"""Server-Sent Events as OpenAI frames them: ``data: {json}``, and ``data: [DONE]`` where all went well.

Until the first chunk a failure has an HTTP status; but a request may wait for its turn longer than a proxy keeps a
silent connection open. So the wait for the first chunk is bounded, and then the status 200 is sent and comments behind
it, which every reader of event streams passes over. From the status on a failure is the last event.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from llava_api.errors import INTERNAL, ApiError, ErrorCode
from llava_api.protocol.response_reply import Event
from llava_api.server.disconnect import ClientGone, unless_disconnected
from llava_api.server.feed import Ended, Feed
from llava_api.server.life import life_of
from llava_api.server.services import Services
from llava_api.telemetry.record import current

log = logging.getLogger(__name__)

KEEP_ALIVE = ": keep-alive\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Nobody keeps an answer; nginx passes each event on when it comes."""
Item = TypeVar("Item")
Reply = TypeVar("Reply", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Framing(Generic[Item]):
    """How a kind of stream is written."""

    item: Callable[[Item], str]
    failure: Callable[[ApiError], str]
    """The last events of a stream that failed."""
    end: str = ""
    """What stands behind the last item of one that did not."""


def chunk(made: BaseModel) -> str:
    return f"data: {made.model_dump_json()}\n\n"


def named(made: Event) -> str:
    return f"event: {made.type}\ndata: {made.model_dump_json()}\n\n"


def error_chunk(error: ApiError) -> str:
    return f"data: {orjson.dumps(error.body()).decode()}\n\n"


CHUNKS: Framing[Any] = Framing(chunk, error_chunk, "data: [DONE]\n\n")


async def chunk_stream(request: Request, chunks: AsyncGenerator[Reply, None]) -> "EventStream[Reply]":
    """An error before the first chunk is raised, if it comes in time."""
    return await event_stream(request, chunks, CHUNKS)


async def named_stream(
    request: Request, made: AsyncGenerator[Event, None], failure: Callable[[ApiError], Iterable[Event]]
) -> "EventStream[Event]":
    """The Responses API's: each event with its type as its name, ``failure``'s among them, and no ``[DONE]``."""
    return await event_stream(request, made, Framing(named, lambda error: "".join(map(named, failure(error)))))


async def event_stream(
    request: Request, made: AsyncGenerator[Item, None], framing: Framing[Item]
) -> "EventStream[Item]":
    services: Services = request.app.state.services
    settings = services.settings
    feed = life_of(request).feed(made)
    first = await feed.next(settings.stream_head_seconds)
    if isinstance(first, Ended) and first.error is not None:
        raise first.error
    return EventStream(feed, first, framing, settings.stream_keep_alive_seconds)


class EventStream(StreamingResponse, Generic[Item]):
    """Ends with its feed; where the caller goes before, so does the feed."""

    def __init__(
        self,
        feed: Feed[Item],
        first: Item | Ended | None,
        framing: Framing[Item],
        keep_alive_seconds: float,
    ) -> None:
        super().__init__(self.blocks(first), headers=HEADERS, media_type="text/event-stream")
        self.feed = feed
        self.framing = framing
        self.keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self.stream_response(send))
        except ClientGone:
            pass
        finally:
            await self.feed.close()

    async def blocks(self, came: Item | Ended | None) -> AsyncGenerator[str, None]:
        while not isinstance(came, Ended):
            yield KEEP_ALIVE if came is None else self.framing.item(came)
            came = await self.feed.next(self.keep_alive_seconds)
        yield self.framing.end if came.error is None else self.framing.failure(as_api_error(came.error))


def as_api_error(error: Exception) -> ApiError:
    """What the caller is told, and the request's record with it."""
    if isinstance(error, ApiError):
        known = error
    else:
        log.error("unforeseen error in a stream", exc_info=error)
        known = ApiError(INTERNAL, code=ErrorCode.INTERNAL_ERROR)
    current().tell(known.code)
    return known
