"""Server-Sent Events as OpenAI frames them: ``data: {json}``, and ``data: [DONE]`` where all went well."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from llava_api.errors import INTERNAL, ApiError
from llava_api.protocol.response_reply import Event
from llava_api.telemetry.record import current

log = logging.getLogger(__name__)

SEPARATOR = "\n"
"""OpenAI's line end; sse-starlette's own is CRLF."""


def event(data: str) -> ServerSentEvent:
    return ServerSentEvent(data, sep=SEPARATOR)


async def events(first: BaseModel, rest: AsyncGenerator[BaseModel, None]) -> AsyncGenerator[ServerSentEvent, None]:
    """After the first chunk an error can only be an event of its own, and the end of the stream."""
    async with aclosing(rest):
        try:
            yield event(first.model_dump_json())
            async for chunk in rest:
                yield event(chunk.model_dump_json())
        except ApiError as error:
            current().tell(error.code)
            yield event(orjson.dumps(error.body()).decode())
            return
        except Exception:
            log.exception("unforeseen error in a stream")
            unforeseen = ApiError(INTERNAL, code="internal_error")
            current().tell(unforeseen.code)
            yield event(orjson.dumps(unforeseen.body()).decode())
            return
        yield event("[DONE]")


async def named_events(first: Event, rest: AsyncGenerator[Event, None]) -> AsyncGenerator[ServerSentEvent, None]:
    """The Responses API's: each with its type as its name, failures among them, and no ``[DONE]``."""
    async with aclosing(rest):
        yield ServerSentEvent(first.model_dump_json(), event=first.type, sep=SEPARATOR)
        async for made in rest:
            yield ServerSentEvent(made.model_dump_json(), event=made.type, sep=SEPARATOR)


async def named_stream(made: AsyncGenerator[Event, None]) -> EventSourceResponse:
    """Waits for the first event: up to there a failure still has an HTTP status."""
    first = await anext(made)
    return event_stream(named_events(first, made))


def event_stream(stream: AsyncGenerator[ServerSentEvent, None]) -> EventSourceResponse:
    return EventSourceResponse(stream, sep=SEPARATOR, headers={"cache-control": "no-cache"})


async def chunk_stream(chunks: AsyncGenerator[BaseModel, None]) -> EventSourceResponse:
    """Waits for the first chunk: up to there a failure still has an HTTP status."""
    first = await anext(chunks)
    return event_stream(events(first, chunks))
