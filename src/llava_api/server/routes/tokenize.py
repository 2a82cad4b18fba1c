"""``POST /tokenize`` and ``/detokenize``, at vLLM's addresses."""

from functools import partial

from llava_api.chat.tokenize import detokenized, tokenized
from llava_api.protocol import tokenize as wire
from llava_api.server.answer import Context
from llava_api.server.endpoint import Endpoint


async def tokenize(context: Context, wanted: wire.TokenizeRequest) -> wire.Tokenized:
    name_model(context, wanted)
    return await tokenized(context.services.preparer, wanted, context.account)


async def detokenize(context: Context, wanted: wire.DetokenizeRequest) -> wire.Detokenized:
    name_model(context, wanted)
    return await detokenized(context.services.preparer, wanted)


def name_model(context: Context, wanted: wire.TokenizeRequest | wire.DetokenizeRequest) -> None:
    """Raises NotFound for an unknown model."""
    wanted.model = context.services.preparer.served_name(wanted.model or context.services.model.names[0])


counting = partial(Endpoint, "POST", spends_tokens=False)
ENDPOINTS = (
    counting(
        "/tokenize",
        prepare=tokenize,
        operation_id="tokenize",
        summary="The token ids of a text or of a chat request, images included",
        request=wire.TokenizeRequest,
        example={"prompt": "What can you do?"},
        reply=wire.Tokenized,
    ),
    counting(
        "/detokenize",
        prepare=detokenize,
        operation_id="detokenize",
        summary="The text of token ids",
        request=wire.DetokenizeRequest,
        example={"tokens": [1]},
        reply=wire.Detokenized,
    ),
)
