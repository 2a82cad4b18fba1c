"""``POST /v1/explain``: what the model would be shown for a chat request, without asking the engine."""

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from llava_api.chat.explain import explain
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.server.body import parse, read_body
from llava_api.server.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_disconnected
from llava_api.server.services import Services, caller_of

router = APIRouter()


@router.post("/v1/explain")
async def explain_request(request: Request) -> Response:
    services: Services = request.app.state.services
    try:
        body = await read_body(request, services.settings.max_body_bytes)
        wanted = parse(body, ChatCompletionRequest)
        explained = await unless_disconnected(request, explain(services.preparer, wanted, caller_of(request)))
    except (ClientGone, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(orjson.dumps(explained.explanation.model_dump()), media_type="application/json")
