"""``POST /v1/explain``: what the model would be shown for a chat request, without asking the engine."""

from fastapi import Request
from fastapi.responses import Response

from llava_api.chat.explain import explain
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.explain import Explanation
from llava_api.server.endpoint import Endpoint
from llava_api.server.exchange import exchange, json_response
from llava_api.server.life import life_of
from llava_api.server.services import Services, allowance_of


async def explain_request(request: Request) -> Response:
    return await exchange(request, ChatCompletionRequest, answer, spends_tokens=False)


async def answer(services: Services, request: Request, wanted: ChatCompletionRequest) -> Response:
    allowance, take = allowance_of(request), life_of(request).held.take
    explained = await explain(services.preparer, wanted, allowance.caller, take, allowance)
    return json_response(explained.explanation)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/explain",
        handle=explain_request,
        operation_id="explain",
        summary="What the model would be shown for a chat request",
        request=ChatCompletionRequest,
        example={"messages": [{"role": "user", "content": "What can you do?"}]},
        reply=Explanation,
    ),
)
