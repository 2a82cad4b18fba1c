"""``POST /v1/explain``: what the model would be shown for a chat request, without asking the engine."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava_api.chat.explain import explain
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.server.exchange import exchange, json_response
from llava_api.server.life import life_of
from llava_api.server.services import Services, allowance_of

router = APIRouter()


@router.post("/v1/explain")
async def explain_request(request: Request) -> Response:
    return await exchange(request, ChatCompletionRequest, answer, spends_tokens=False)


async def answer(services: Services, request: Request, wanted: ChatCompletionRequest) -> Response:
    allowance, take = allowance_of(request), life_of(request).held.take
    explained = await explain(services.preparer, wanted, allowance.caller, take, allowance)
    return json_response(explained.explanation)
