"""Server-Sent Events as OpenAI frames them: ``data: {json}``, and ``data: [DONE]`` after the last chunk.

Until the first item a failure has an HTTP status. But a request may wait for its turn longer than a proxy keeps a
silent connection open. So the wait for the first item is bounded; then the status 200 is sent, and comments, which
every reader of event streams skips. From then on a failure is the last event.
"""

import logging
from collections.abc import AsyncGenerator

from pydantic import BaseModel
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse

from llava_api.errors import INTERNAL, ApiError, ErrorCode
from llava_api.protocol.response_reply import Event
from llava_api.server.producer import End, Reply, ReplyProducer
from llava_api.telemetry.record import current

log = logging.getLogger(__name__)

SEPARATOR = "\n"
# sse-starlette would end all streams at SIGTERM. Here the drain decides how long they may go on (lifecycle.py).
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class EventStream(EventSourceResponse):
    """The items of ``producer`` as events. ``first``: its first items, None if they have not come yet."""

    def __init__(
        self, producer: ReplyProducer, reply: Reply, first: list[BaseModel] | End | None, keep_alive_seconds: float
    ) -> None:
        # Without its pings, which come by the clock; ours come in silence only.
        super().__init__(self.events(first), headers={"cache-control": "no-cache"}, sep=SEPARATOR, ping=0)
        # Whether the connection is kept is uvicorn's decision, which sends the header itself.
        del self.headers["connection"]
        self.producer = producer
        self.reply = reply
        self.keep_alive_seconds = keep_alive_seconds

    async def events(self, items: list[BaseModel] | End | None) -> AsyncGenerator[ServerSentEvent | bytes, None]:
        while not isinstance(items, End):
            if items is None:
                yield ServerSentEvent(comment="keep-alive", sep=SEPARATOR)
            else:
                # In one piece, because sse-starlette spends microseconds on each.
                yield b"".join([event_of(item).encode() for item in items])
            items = await self.producer.next(self.keep_alive_seconds)
        if items.error is not None:
            for last in self.reply.failure(as_api_error(items.error)):
                yield event_of(last)
        elif self.reply.end_of_stream is not None:
            yield ServerSentEvent(self.reply.end_of_stream, sep=SEPARATOR)


def event_of(item: BaseModel) -> ServerSentEvent:
    """The Responses API's events have their type as their name; chunks have no name."""
    name = item.type if isinstance(item, Event) else None
    return ServerSentEvent(item.model_dump_json(), event=name, sep=SEPARATOR)


def as_api_error(error: Exception) -> ApiError:
    """What the client is told, and noted in the request's record."""
    if isinstance(error, ApiError):
        known = error
    else:
        log.error("unforeseen error in a stream", exc_info=error)
        known = ApiError(INTERNAL, code=ErrorCode.INTERNAL_ERROR)
    current().tell(known.code)
    return known
