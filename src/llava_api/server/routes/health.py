"""``/health/live``: the process works or is about to. ``/health/ready`` and ``/health``: it takes requests."""

from functools import partial

from fastapi import Request
from fastapi.responses import Response

from llava_api.protocol.server_info import Health
from llava_api.server.answer import json_response
from llava_api.server.endpoint import Endpoint
from llava_api.server.middleware.availability import refusal
from llava_api.server.state import services_of, state_of


async def live(request: Request) -> Response:
    """503 only if nothing but a new process helps: not while it loads or drains or its engine is started again."""
    state = state_of(request.app)
    if state.lifecycle.failure is not None:
        raise refusal(state) or state.lifecycle.failure
    return json_response(Health(status="live"))


async def ready(request: Request) -> Response:
    refused = refusal(state_of(request.app))
    if refused is not None:
        raise refused
    await services_of(request).engine.check_health()
    return json_response(Health(status="ready"))


health_endpoint = partial(Endpoint, method="GET", reply=Health, access=lambda _: "open", probe=True)
ENDPOINTS = (
    health_endpoint(path="/health/live", handle=live, operation_id="live", summary="Whether the process runs"),
    health_endpoint(path="/health/ready", handle=ready, operation_id="ready", summary="Whether it takes requests"),
    health_endpoint(path="/health", handle=ready, operation_id="health", summary="Another name of /health/ready"),
)
