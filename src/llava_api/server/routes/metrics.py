"""``GET /metrics`` for Prometheus, in its text format or OpenMetrics, as the Accept header asks."""

import asyncio

from fastapi import Request
from fastapi.responses import Response

from llava_api.server.endpoint import Endpoint
from llava_api.server.state import state_of


async def get_metrics(request: Request) -> Response:
    metrics = state_of(request.app).metrics
    metrics.sample()
    # This takes some milliseconds; in a thread it does not delay the tokens of open streams.
    content, content_type = await asyncio.to_thread(metrics.page, request.headers.get("accept", ""))
    return Response(content, headers={"content-type": content_type})


ENDPOINTS = (
    Endpoint(method="GET", path="/metrics", handle=get_metrics, access=lambda settings: settings.metrics, probe=True),
)
