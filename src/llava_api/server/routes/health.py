"""``/health/live``: the process does its work or is about to. ``/health/ready`` and ``/health``: it takes requests."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava_api.protocol.health import Health
from llava_api.server.exchange import json_response
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.middleware.gate import refusal

router = APIRouter(prefix="/health")


@router.api_route("/live", methods=["GET", "HEAD"])
async def live(request: Request) -> Response:
    """503 only where nothing but a new process helps: not while it loads or drains or its engine is started again."""
    life: Lifecycle = request.app.state.lifecycle
    if life.failure is not None:
        raise refusal(life, None) or life.failure
    return json_response(Health(status="live"))


@router.api_route("/ready", methods=["GET", "HEAD"])
@router.api_route("", methods=["GET", "HEAD"])
async def ready(request: Request) -> Response:
    services = request.app.state.services
    refused = refusal(request.app.state.lifecycle, services)
    if refused is not None:
        raise refused
    await services.engine.check_health()
    return json_response(Health(status="ready"))
