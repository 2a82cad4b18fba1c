"""``POST /v1/explain``: what the model would be shown for a chat request, without asking the engine."""

from llava_api.chat.explain import explain
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.explain import Explanation
from llava_api.server.answer import Context
from llava_api.server.endpoint import Endpoint


async def prepare(context: Context, wanted: ChatCompletionRequest) -> Explanation:
    return (await explain(context.services.preparer, wanted, context.account)).explanation


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/explain",
        prepare=prepare,
        operation_id="explain",
        summary="What the model would be shown for a chat request",
        request=ChatCompletionRequest,
        example={"messages": [{"role": "user", "content": "What can you do?"}]},
        reply=Explanation,
        spends_tokens=False,
    ),
)
