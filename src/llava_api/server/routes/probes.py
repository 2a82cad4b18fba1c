"""``/health`` and ``/metrics``, which machines ask every few seconds. The side port serves nothing else."""

import asyncio
from functools import partial

from fastapi import Request
from fastapi.responses import Response

from llava_api.errors import ErrorCode, Unavailable
from llava_api.protocol.server_info import Health
from llava_api.server.answer import json_response
from llava_api.server.endpoint import Endpoint
from llava_api.server.middleware.availability import refusal
from llava_api.server.state import state_of
from llava_api.telemetry.metrics import State

STATES: dict[ErrorCode | None, State] = {
    ErrorCode.MODEL_NOT_READY: "loading",
    ErrorCode.ENGINE_RESTARTING: "restarting",
    ErrorCode.SERVER_STOPPING: "draining",
}


async def live(request: Request) -> Response:
    """503 only if the process must be replaced: not while it loads or drains, or its engine is started again."""
    state = state_of(request.app)
    if state.lifecycle.failure is not None:
        raise refusal(state.lifecycle, state.loaded) or state.lifecycle.failure
    return json_response(Health(status="live"))


async def ready(request: Request) -> Response:
    state = state_of(request.app)
    refused = refusal(state.lifecycle, state.loaded)
    if refused is not None:
        raise refused
    if state.services is not None:
        await state.services.engine.check_health()
    return json_response(Health(status="ready"))


async def state_now(request: Request) -> State:
    """What ``/health/ready`` says, in one word."""
    try:
        await ready(request)
    except Unavailable as refused:
        return STATES.get(refused.code, "lost")
    return "ready"


async def get_metrics(request: Request) -> Response:
    """For Prometheus, in its text format or OpenMetrics, as the Accept header asks."""
    metrics = state_of(request.app).metrics
    metrics.sample(await state_now(request))
    # This takes some milliseconds; in a thread it does not delay the tokens of open streams.
    content, content_type = await asyncio.to_thread(metrics.page, request.headers.get("accept", ""))
    return Response(content, headers={"content-type": content_type})


health_endpoint = partial(Endpoint, "GET", reply=Health, access=lambda _: "open", probe=True)
HEALTH = (
    health_endpoint("/health/live", live, operation_id="live", summary="Whether the process runs"),
    health_endpoint("/health/ready", ready, operation_id="ready", summary="Whether the server takes requests"),
    health_endpoint("/health", ready, operation_id="health", summary="Another name of /health/ready"),
)
ENDPOINTS = (*HEALTH, Endpoint("GET", "/metrics", get_metrics, access=lambda settings: settings.metrics, probe=True))
