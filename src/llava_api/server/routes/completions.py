"""``POST /v1/completions``."""

import time

from llava_api.chat.chat_reply import ReplyMetadata
from llava_api.chat.completion_reply import CompletionReply
from llava_api.chat.plain import prepare_plain
from llava_api.protocol.completions import Completion, CompletionChunk, CompletionChunkWithUsage, CompletionRequest
from llava_api.protocol.wire import ErrorReply
from llava_api.server.answer import Context
from llava_api.server.endpoint import Endpoint


async def prepare(context: Context, wanted: CompletionRequest) -> CompletionReply:
    services, account = context.services, context.account
    wanted.model = services.preparer.served_name(wanted.model)
    metadata = ReplyMetadata(context.reply_id("cmpl-"), int(time.time()), wanted.model, services.fingerprint)
    plain = await prepare_plain(services.preparer, wanted, metadata.id, account)
    account.memory.keep(sum(spec.held_bytes for spec in plain.specs))
    answers = [context.answers(spec) for spec in plain.specs]
    return CompletionReply(answers, plain, metadata, wanted)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        prepare=prepare,
        operation_id="createCompletion",
        summary="Continue a plain text",
        request=CompletionRequest,
        example={"prompt": "USER: What can you do? ASSISTANT:", "max_tokens": 32},
        reply=Completion,
        events=(CompletionChunk, CompletionChunkWithUsage, ErrorReply),
        short_path=True,
    ),
)
