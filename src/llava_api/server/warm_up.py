"""One small JSON answer before the first request, because some things are only made when they are first needed.

These are the process in which grammars are tried, its tokenizer, a second tokenizer inside EngineCore, which keeps
answers to grammars, and on a GPU what computes log-probabilities.
"""

import asyncio
import logging

from llava_api.chat.question import chat_question
from llava_api.errors import ApiError, EngineStopped, StartupError
from llava_api.limits.account import Account
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.server.services import Services

log = logging.getLogger(__name__)

SECONDS = 30.0
"""After this time the server is ready without it."""


async def warm_up(services: Services) -> None:
    """Without it, only the first such answers are slower. Raises StartupError if the engine does not survive it."""
    body = {
        "model": services.model.names[0],
        "messages": [{"role": "user", "content": "Hello"}],
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "max_tokens": 1,
    }
    try:
        async with asyncio.timeout(SECONDS):
            question = chat_question(ChatCompletionRequest.model_validate(body), services.model, 1)
            spec = await services.preparer.prepare(question, "warm-up", Account())
            answer = services.engine.generate(spec.request)
            try:
                async for _ in answer:
                    pass
            finally:
                await answer.aclose()
    except EngineStopped as error:
        raise StartupError("the engine ended at its first answer; the lines above say why") from error
    except (ApiError, TimeoutError) as error:
        log.warning("the first JSON answer will take longer: the warm-up did not end (%s)", type(error).__name__)
