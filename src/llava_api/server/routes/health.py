"""``/health/live``: the process answers. ``/health/ready`` and ``/health``: it can answer chat requests."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava_api.errors import EngineFailed, NotReady
from llava_api.protocol.health import Health
from llava_api.server.exchange import json_response
from llava_api.server.services import Services

router = APIRouter(prefix="/health")


@router.api_route("/live", methods=["GET", "HEAD"])
async def live() -> Response:
    return json_response(Health(status="live"))


@router.api_route("/ready", methods=["GET", "HEAD"])
@router.api_route("", methods=["GET", "HEAD"])
async def ready(request: Request) -> Response:
    services: Services | None = request.app.state.services
    if services is None:
        raise NotReady("The model is still loading; try again in a moment.")
    try:
        await services.engine.check_health()
    except EngineFailed as error:
        raise NotReady(error.message, code=error.code) from error
    return json_response(Health(status="ready"))
