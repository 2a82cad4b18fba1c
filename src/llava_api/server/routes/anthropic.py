"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens`` of Anthropic's Messages API."""

from llava_api.chat.anthropic_question import messages_question
from llava_api.chat.anthropic_reply import AnthropicReply
from llava_api.protocol.anthropic import MessagesRequest
from llava_api.protocol.anthropic_reply import EVENTS, AnthropicMessage, TokenCount
from llava_api.server.answer import Context
from llava_api.server.endpoint import Endpoint


async def prepare(context: Context, wanted: MessagesRequest) -> AnthropicReply:
    services, account = context.services, context.account
    wanted.model = services.preparer.served_name(wanted.model)
    question = messages_question(wanted, services.model)
    spec = await services.preparer.prepare(question, context.reply_id("msg_"), account)
    account.memory.keep(spec.held_bytes)
    return AnthropicReply(
        context.answers(spec),
        wanted.model,
        wanted.stop_sequences or (),
        bool(wanted.stream),
        context.request_id,
    )


async def count_tokens(context: Context, wanted: MessagesRequest) -> TokenCount:
    preparer = context.services.preparer
    wanted.model = preparer.served_name(wanted.model)
    question = messages_question(wanted, context.services.model)
    laid_out = await preparer.lay_out(question.conversation, context.account)
    return TokenCount(input_tokens=len(laid_out.prompt.token_ids))


EXAMPLE = {"messages": [{"role": "user", "content": "What can you do?"}]}

ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/messages",
        prepare=prepare,
        operation_id="createMessage",
        summary="Ask about texts and images with Anthropic's Messages API",
        request=MessagesRequest,
        example={**EXAMPLE, "max_tokens": 32},
        reply=AnthropicMessage,
        events=EVENTS,
    ),
    Endpoint(
        "POST",
        "/v1/messages/count_tokens",
        prepare=count_tokens,
        operation_id="countMessageTokens",
        summary="Count the tokens of a message's prompt, images included, without asking the engine",
        request=MessagesRequest,
        example=EXAMPLE,
        reply=TokenCount,
        spends_tokens=False,
    ),
)
