"""``POST /v1/completions``."""

import time

from fastapi import Request
from fastapi.responses import Response

from llava_api.chat.chat_reply import Head
from llava_api.chat.completion_reply import CompletionReply
from llava_api.chat.plain import prepare_plain
from llava_api.protocol.completions import Completion, CompletionChunk, CompletionChunkWithUsage, CompletionRequest
from llava_api.protocol.error import ErrorReply
from llava_api.server.endpoint import Endpoint, Stream
from llava_api.server.exchange import exchange, json_response, reply_id
from llava_api.server.routes.chat import CHUNKS
from llava_api.server.services import Services, allowance_of
from llava_api.server.sse import chunk_stream


async def create_completion(request: Request) -> Response:
    return await exchange(request, CompletionRequest, answer)


async def answer(services: Services, request: Request, wanted: CompletionRequest) -> Response:
    head = Head(reply_id(request, "cmpl-"), int(time.time()), wanted.model, services.fingerprint)
    allowance = allowance_of(request)
    plain = await prepare_plain(services.preparer, wanted, head.id, allowance)
    answers = [services.answers(asked, allowance) for asked in plain.asked]
    reply = CompletionReply(answers, plain, services.model.tokenizer, head)
    if not wanted.stream:
        return json_response(await reply.whole())
    include_usage = wanted.stream_options is not None and bool(wanted.stream_options.include_usage)
    return await chunk_stream(request, reply.chunks(include_usage))


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/completions",
        handle=create_completion,
        operation_id="createCompletion",
        summary="Continue a plain text",
        request=CompletionRequest,
        example={"prompt": "USER: What can you do? ASSISTANT:", "max_tokens": 32},
        reply=Completion,
        stream=Stream(CHUNKS, (CompletionChunk, CompletionChunkWithUsage, ErrorReply)),
        short_path=True,
    ),
)
