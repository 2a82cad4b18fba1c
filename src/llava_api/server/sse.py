"""Chunks -> Server-Sent Events, as OpenAI frames them: ``data: {json}``, at the end ``data: [DONE]``."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent

from llava_api.errors import ApiError
from llava_api.protocol.chat import ChatCompletionChunk
from llava_api.server.error_handlers import INTERNAL

log = logging.getLogger(__name__)

SEPARATOR = "\n"
"""OpenAI's line end; sse-starlette's own is CRLF."""


def encode(chunk: ChatCompletionChunk) -> str:
    """One chunk as JSON; a delta names only the fields it carries, as the API's do."""
    data = chunk.model_dump(exclude_none=False)
    for choice in data["choices"]:
        choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
    if chunk.usage is None:
        del data["usage"]
    return orjson.dumps(data).decode()


def event(data: str) -> ServerSentEvent:
    return ServerSentEvent(data, sep=SEPARATOR)


async def events(
    first: ChatCompletionChunk, rest: AsyncGenerator[ChatCompletionChunk, None]
) -> AsyncGenerator[ServerSentEvent, None]:
    """After the first chunk an error can only be an event of its own, and the end of the stream."""
    async with aclosing(rest):
        try:
            yield event(encode(first))
            async for chunk in rest:
                yield event(encode(chunk))
        except ApiError as error:
            yield event(orjson.dumps(error.body()).decode())
            return
        except Exception:
            log.exception("unforeseen error in a stream")
            unforeseen = ApiError(INTERNAL, code="internal_error")
            yield event(orjson.dumps(unforeseen.body()).decode())
            return
        yield event("[DONE]")


def event_stream(first: ChatCompletionChunk, rest: AsyncGenerator[ChatCompletionChunk, None]) -> EventSourceResponse:
    return EventSourceResponse(events(first, rest), sep=SEPARATOR, headers={"cache-control": "no-cache"})
