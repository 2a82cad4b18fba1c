"""``POST /v1/chat/completions``."""

import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from llava_api.chat.reply import Reply
from llava_api.errors import InvalidRequest
from llava_api.protocol.chat import ChatCompletionChunk, ChatCompletionRequest
from llava_api.server.body import parse, read_body
from llava_api.server.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_disconnected
from llava_api.server.services import Services, caller_of
from llava_api.server.sse import event_stream

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    services: Services = request.app.state.services
    try:
        body = await read_body(request, services.settings.max_body_bytes)
        wanted = parse(body, ChatCompletionRequest)
        if wanted.stream_options is not None and not wanted.stream:
            raise InvalidRequest("stream_options is only for requests with stream: true.", param="stream_options")
        asked = make_reply(services, wanted, request)
        if not wanted.stream:
            return await unless_disconnected(request, answer_whole(asked))
        include_usage = wanted.stream_options is not None and bool(wanted.stream_options.include_usage)
        first, rest = await unless_disconnected(request, start_stream(asked, include_usage))
    except (ClientGone, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return event_stream(first, rest)


async def make_reply(services: Services, wanted: ChatCompletionRequest, request: Request) -> Reply:
    """The reply's id is the request's, under the name that OpenAI gives it."""
    reply_id = "chatcmpl-" + request.state.request_id.removeprefix("req_")
    prepared = await services.preparer.prepare(wanted, reply_id, caller_of(request))
    return Reply(services.engine, prepared, reply_id, int(time.time()), wanted.model)


async def answer_whole(asked: Coroutine[Any, Any, Reply]) -> Response:
    completion = await (await asked).whole()
    return Response(orjson.dumps(completion.model_dump()), media_type="application/json")


async def start_stream(
    asked: Coroutine[Any, Any, Reply], include_usage: bool
) -> tuple[ChatCompletionChunk, AsyncGenerator[ChatCompletionChunk, None]]:
    """The first chunk and the rest: up to the first chunk a failure still has an HTTP status."""
    chunks = (await asked).chunks(include_usage)
    return await anext(chunks), chunks
