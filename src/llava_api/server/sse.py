"""Server-Sent Events as OpenAI frames them: ``data: {json}``, and ``data: [DONE]`` after the last chunk.

Until the first item a failure has an HTTP status. But a request may wait for its turn longer than a proxy keeps a
silent connection open. So the wait for the first item is bounded; then the status 200 is sent, and comments, which
every reader of event streams skips. From then on a failure is the last event.
"""

import logging
from collections.abc import AsyncGenerator, Iterable

from pydantic import BaseModel
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.types import Receive, Scope, Send

from llava_api.errors import INTERNAL, ApiError, ErrorCode
from llava_api.protocol.wire import NamedEvent
from llava_api.server.producer import End, Reply, ReplyProducer, Stopped
from llava_api.telemetry.record import current

log = logging.getLogger(__name__)

# The import makes sse-starlette end all streams at SIGTERM. Here the drain decides how long they go on (lifecycle.py).
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


class EventStream(EventSourceResponse):
    """The items of ``producer`` as events. ``first``: its first items, None if they have not come yet."""

    media_type = "text/event-stream"

    def __init__(
        self, producer: ReplyProducer, reply: Reply, first: list[BaseModel] | End | None, keep_alive_seconds: float
    ) -> None:
        super().__init__(self.blocks(first), headers={"cache-control": "no-cache"}, media_type=self.media_type)
        # uvicorn sends this header itself, and knows whether the connection is kept.
        del self.headers["connection"]
        self.producer = producer
        self.reply = reply
        self.keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the producer ends, which the exchange sees to if the client leaves.

        The base class would run a task group with one task for the events, one for SIGTERM and one for the disconnect,
        and a cancel scope for each event. That is a third of all the CPU time of a short stream.
        """
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for block in self.body_iterator:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def blocks(self, items: list[BaseModel] | End | None) -> AsyncGenerator[bytes, None]:
        while not isinstance(items, End):
            if items is None:
                yield self.silence()
            else:
                yield self.encode(items)
            items = await self.producer.next(self.keep_alive_seconds)
        if isinstance(items.error, Stopped):
            return
        if items.error is not None:
            yield self.encode(self.reply.failure(as_api_error(items.error)))
        elif self.reply.end_of_stream is not None:
            yield ServerSentEvent(self.reply.end_of_stream, sep="\n").encode()

    def silence(self) -> bytes:
        """Keeps a connection open on which nothing else is sent."""
        return ServerSentEvent(comment="keep-alive", sep="\n").encode()

    def encode(self, items: Iterable[BaseModel]) -> bytes:
        return b"".join([encoded(item) for item in items])


def encoded(item: BaseModel) -> bytes:
    """OpenAI's chunks have no name."""
    name = item.type if isinstance(item, NamedEvent) else None
    return ServerSentEvent(item.model_dump_json(), event=name, sep="\n").encode()


def as_api_error(error: Exception) -> ApiError:
    """The error that is sent to the client, and noted in the request's record."""
    if isinstance(error, ApiError):
        known = error
    else:
        log.error("unforeseen error in a stream", exc_info=error)
        known = ApiError(INTERNAL, code=ErrorCode.INTERNAL_ERROR)
    current().note_error(known.code)
    return known
