"""The declared endpoints with example addresses and bodies, for tests that go through all of them."""

from typing import Any

from llava_api.server import routes
from llava_api.server.endpoint import Endpoint
from llava_api.server.routes import docs, probes
from llava_api.settings import Settings

ALL = tuple(each for each in (*routes.ENDPOINTS, *docs.ENDPOINTS) if each.access(Settings()) != "off")
"""Those that are served by default."""
HEALTH = tuple(endpoint.path for endpoint in probes.HEALTH)
PROBES = tuple(endpoint.path for endpoint in ALL if endpoint.probe)
EXAMPLE_BODIES: dict[str, dict[str, Any]] = {
    endpoint.path: {"model": "tiny", **endpoint.example} for endpoint in ALL if endpoint.request
}
"""Path -> a valid request, for each endpoint that takes a body."""
GENERATING = tuple(endpoint.path for endpoint in ALL if endpoint.request and endpoint.spends_tokens)
"""Paths of the endpoints that use the engine."""


def example_address(endpoint: Endpoint) -> str:
    return endpoint.path.format(model="tiny", response_id="resp_1")
