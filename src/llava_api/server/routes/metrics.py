"""``GET /metrics``: the page for Prometheus, in its text format or OpenMetrics, as the Accept header asks."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llava_api.telemetry.metrics import Metrics

router = APIRouter()
PATH = "/metrics"


@router.get(PATH)
async def metrics(request: Request) -> Response:
    made: Metrics = request.app.state.metrics
    made.sample()
    # In a thread: some milliseconds, in which no token would go out.
    content, content_type = await asyncio.to_thread(made.page, request.headers.get("accept", ""))
    return Response(content, headers={"content-type": content_type})
