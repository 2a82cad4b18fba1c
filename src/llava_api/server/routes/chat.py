"""``POST /v1/chat/completions``."""

import time

from llava_api.chat.chat_reply import ChatReply, ReplyMetadata
from llava_api.chat.question import chat_question
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.chat_reply import ChatCompletion, ChatCompletionChunk, ChunkWithUsage
from llava_api.protocol.tools import NamedTool
from llava_api.protocol.wire import ErrorReply
from llava_api.server.answer import Context
from llava_api.server.endpoint import Endpoint


async def prepare(context: Context, wanted: ChatCompletionRequest) -> ChatReply:
    services, account = context.services, context.account
    wanted.model = services.preparer.served_name(wanted.model)
    question = chat_question(wanted, services.model, services.settings.max_choices)
    metadata = ReplyMetadata(context.reply_id("chatcmpl-"), int(time.time()), wanted.model, services.fingerprint)
    spec = await services.preparer.prepare(question, metadata.id, account)
    account.memory.keep(spec.held_bytes)
    answers = context.answers(spec)
    named_call = isinstance(wanted.tool_choice, NamedTool)
    return ChatReply(answers, metadata, wanted, named_call)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        prepare=prepare,
        operation_id="createChatCompletion",
        summary="Ask about texts and images",
        request=ChatCompletionRequest,
        example={"messages": [{"role": "user", "content": "What can you do?"}]},
        reply=ChatCompletion,
        events=(ChatCompletionChunk, ChunkWithUsage, ErrorReply),
        short_path=True,
    ),
)
