"""``/openapi.json`` and ``/docs``: Swagger UI from this server's own disk, so that it works without the internet."""

import orjson
from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from llava_api.server.openapi import openapi_document
from llava_api.server.services import Services

router = APIRouter()

# All addresses are relative: behind a proxy the page may stand under a path that this server does not know.
ASSETS = "docs/assets"
ASSET_NAMES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    services: Services = request.app.state.services
    return Response(orjson.dumps(openapi_document(services.model.names[0])), media_type="application/json")


@router.get("/docs")
async def docs() -> Response:
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="llava-api",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
    )


def assets() -> Mount:
    return Mount(f"/{ASSETS}", StaticFiles(packages=[("fastapi_swagger", "resources")]), name="docs")
