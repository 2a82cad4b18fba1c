"""``POST /v1/completions``."""

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava_api.chat.chat_reply import Head
from llava_api.chat.completion_reply import CompletionReply
from llava_api.chat.plain import prepare_plain
from llava_api.protocol.completions import CompletionRequest
from llava_api.server.exchange import exchange, json_response, reply_id
from llava_api.server.services import Services, allowance_of
from llava_api.server.sse import chunk_stream

router = APIRouter()


@router.post("/completions")
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
