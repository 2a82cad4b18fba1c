"""``/openapi.json`` and ``/docs``: Swagger UI from this server's own disk, so that it works without the internet."""

from functools import partial

import orjson
from fastapi import Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

from llava_api.server.endpoint import Endpoint
from llava_api.server.openapi import openapi_document
from llava_api.server.routes import ENDPOINTS as DOCUMENTED
from llava_api.server.state import services_of

# Relative addresses, because a proxy may serve the page under a path that this server does not know.
ASSETS = "docs/assets"
ASSET_NAMES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
FILES = StaticFiles(packages=[("fastapi_swagger", "resources")])


async def openapi(request: Request) -> Response:
    services = services_of(request)
    served = tuple(each for each in DOCUMENTED if each.access(services.settings) != "off")
    document = openapi_document(served, services.model.names[0])
    return Response(orjson.dumps(document), media_type="application/json")


async def docs(_: Request) -> Response:
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="llava-api",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
    )


async def asset(request: Request) -> Response:
    return await FILES.get_response(request.scope["path"].rpartition("/")[2], request.scope)


docs_endpoint = partial(Endpoint, "GET", access=lambda settings: settings.docs)
ENDPOINTS = (
    docs_endpoint("/openapi.json", openapi),
    docs_endpoint("/docs", docs),
    *(docs_endpoint(f"/{ASSETS}/{name}", asset) for name in ASSET_NAMES),
)
