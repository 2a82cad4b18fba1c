"""The application: middleware, handlers and routes in one list. No module-level app, no singletons."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from llava_api import __version__
from llava_api.server import error_handlers
from llava_api.server.middleware.request_id import RequestId
from llava_api.server.routes import chat, completions, explain, health, models, responses
from llava_api.server.services import Services

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: Services | None = None, lifespan: Lifespan | None = None) -> FastAPI:
    """The API over ``services``; where they are made at start-up, ``lifespan`` puts them on ``app.state``."""
    app = FastAPI(
        title="llava-api",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # A redirect has no body that a client could read; a wrong address is a 404 like any other.
        redirect_slashes=False,
    )
    app.state.services = services
    app.add_middleware(RequestId)
    error_handlers.install(app)
    app.include_router(chat.router, prefix="/v1")
    app.include_router(completions.router, prefix="/v1")
    app.include_router(responses.router, prefix="/v1")
    app.include_router(explain.router)
    app.include_router(models.router)
    app.include_router(health.router)
    return app
