"""``GET /version``: what the server runs, where vLLM's own server tells it too."""

from fastapi import APIRouter
from fastapi.responses import Response

from llava_api.protocol.version import Version
from llava_api.server.exchange import json_response
from llava_api.versions import all_versions

router = APIRouter()
# Now, not at a request: it reads files.
VERSION = Version.model_validate(all_versions())


@router.get("/version")
async def version() -> Response:
    return json_response(VERSION)
