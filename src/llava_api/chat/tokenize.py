"""Texts and messages -> the token ids that the engine would be given, and back."""

import asyncio

from llava_api.chat.prepare import Preparer
from llava_api.chat.question import chat_question
from llava_api.chat.sampling import check_ids
from llava_api.errors import InvalidRequest
from llava_api.limits.account import Account
from llava_api.protocol import tokenize as wire
from llava_api.protocol.chat import ChatCompletionRequest


async def tokenized(preparer: Preparer, request: wire.TokenizeRequest, account: Account) -> wire.Tokenized:
    """A prompt that is too long for the context is counted too. Raises InvalidRequest, RateLimited and Busy."""
    given = [each for each in (request.prompt, request.content, request.messages) if each is not None]
    if len(given) != 1:
        raise InvalidRequest("Send prompt or messages, one of the two.", param="prompt")
    if request.messages is None:
        token_ids = await text_ids(preparer, request)
    else:
        chat = ChatCompletionRequest.model_construct(**dict(request))
        question = chat_question(chat, preparer.model, preparer.settings.max_choices)
        token_ids = (await preparer.lay_out(question.conversation, account)).prompt.token_ids
    pieces = None
    if request.return_token_strs:
        piece = preparer.model.tokenizer.piece
        pieces = await asyncio.to_thread(lambda: list(map(piece, token_ids)))
    return wire.Tokenized(
        count=len(token_ids), max_model_len=preparer.max_model_len, tokens=token_ids, token_strs=pieces
    )


async def text_ids(preparer: Preparer, request: wire.TokenizeRequest) -> list[int]:
    """Raises InvalidRequest for a text that is far too long for the context."""
    param = "prompt" if request.content is None else "content"
    text = request.prompt or request.content or ""
    tokenizer = preparer.model.tokenizer
    preparer.check_length(len(text), param)
    with_bos = request.add_special_tokens is not False if request.content is None else request.add_special
    if with_bos:
        return await asyncio.to_thread(tokenizer.encode_text, text)
    return await asyncio.to_thread(tokenizer.encode, [text])


async def detokenized(preparer: Preparer, request: wire.DetokenizeRequest) -> wire.Detokenized:
    """Raises InvalidRequest for a token that the model does not have."""
    check_ids(request.tokens, preparer.model, "tokens")
    return wire.Detokenized(prompt=await asyncio.to_thread(preparer.model.tokenizer.text, request.tokens))
