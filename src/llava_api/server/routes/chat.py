"""``POST /v1/chat/completions``."""

import time

from fastapi import Request
from fastapi.responses import Response

from llava_api.chat.chat_reply import ChatReply, Head
from llava_api.chat.question import chat_question
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.chat_reply import ChatCompletion, ChatCompletionChunk, ChunkWithUsage
from llava_api.protocol.error import ErrorReply
from llava_api.server.endpoint import Endpoint, Stream
from llava_api.server.exchange import exchange, json_response, reply_id
from llava_api.server.life import life_of
from llava_api.server.services import Services, allowance_of
from llava_api.server.sse import chunk_stream


async def create_chat_completion(request: Request) -> Response:
    return await exchange(request, ChatCompletionRequest, answer)


async def answer(services: Services, request: Request, wanted: ChatCompletionRequest) -> Response:
    services.preparer.find_adapter(wanted.model)
    question = chat_question(wanted, services.model, services.settings.max_choices)
    head = Head(reply_id(request, "chatcmpl-"), int(time.time()), wanted.model, services.fingerprint)
    allowance = allowance_of(request)
    held = life_of(request).held
    prepared = await services.preparer.prepare(question, head.id, allowance.caller, held.take, allowance)
    streamed, options = wanted.stream, wanted.stream_options
    # The pictures' files and their base64: the pixels are all that is needed from here.
    del wanted, question
    held.keep(prepared.pixel_bytes)
    reply = ChatReply(services.answers(prepared.asked, allowance), prepared, head)
    if not streamed:
        return json_response(await reply.whole())
    include_usage = options is not None and bool(options.include_usage)
    return await chunk_stream(request, reply.chunks(include_usage))


CHUNKS = (
    "Server-Sent Events without names, each a chunk. The last is `data: [DONE]`; after a failure it is one event "
    '`data: {"error": {...}}` instead.'
)
ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handle=create_chat_completion,
        operation_id="createChatCompletion",
        summary="Ask about texts and images",
        request=ChatCompletionRequest,
        example={"messages": [{"role": "user", "content": "What can you do?"}]},
        reply=ChatCompletion,
        stream=Stream(CHUNKS, (ChatCompletionChunk, ChunkWithUsage, ErrorReply)),
        short_path=True,
    ),
)
