"""``GET /version``: the versions of the server and its main packages. vLLM's server has this address too."""

from fastapi import Request
from fastapi.responses import Response

from llava_api.protocol.server_info import Version
from llava_api.server.answer import json_response
from llava_api.server.endpoint import Endpoint
from llava_api.versions import all_versions

# Read when the module is imported, because this opens files.
VERSION = Version.model_validate(all_versions())


async def version(_: Request) -> Response:
    return json_response(VERSION)


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/version",
        handle=version,
        operation_id="version",
        summary="Versions of the server and its main packages",
        reply=Version,
    ),
)
