"""The application: middleware, handlers and routes in one list. No module-level app, no singletons."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.routing import Route

from llava_api import __version__
from llava_api.limits.keys import KeyRing
from llava_api.server import error_handlers
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.middleware.access import Access
from llava_api.server.middleware.allowances import Allowances
from llava_api.server.middleware.authentication import Authentication
from llava_api.server.middleware.cors import Cors
from llava_api.server.middleware.gate import Gate
from llava_api.server.middleware.head import HeadAsGet
from llava_api.server.middleware.origin import Origins
from llava_api.server.middleware.proxy import ForwardedFor
from llava_api.server.middleware.request_id import RequestId
from llava_api.server.middleware.root_path import RootPath
from llava_api.server.routes import chat, completions, docs, explain, health, metrics, models, responses, version
from llava_api.server.services import Services
from llava_api.settings import Settings
from llava_api.telemetry.metrics import HEALTH, PROBES, Metrics
from llava_api.telemetry.tracing import Tracing
from llava_api.versions import all_versions

RATE_LIMIT_HEADERS = [
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    settings: Settings,
    keys: KeyRing,
    services: Services | None = None,
    lifespan: Lifespan | None = None,
    life: Lifecycle | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
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
    app.state.lifecycle = life = life or Lifecycle()
    # There before the model is.
    app.state.metrics = Metrics(all_versions()) if services is None else services.metrics
    app.state.tracing = tracing
    # What is added last is met first.
    app.add_middleware(HeadAsGet)
    app.add_middleware(Allowances)
    app.add_middleware(Gate, root=app, life=life, open_paths=PROBES)
    app.add_middleware(Authentication, keys=keys, open_paths=open_paths(settings))
    if not keys.needed:
        app.add_middleware(Origins, settings=settings)
    if settings.cors_allow_origins:
        app.add_middleware(
            Cors,
            allow_origins=settings.cors_allow_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "retry-after-ms", *RATE_LIMIT_HEADERS],
        )
    routes: set[str] = set()
    app.add_middleware(
        Access, metrics=app.state.metrics, routes=routes, tracing=tracing, log_prompts=settings.log_prompts
    )
    app.add_middleware(RequestId)
    # These two say what was asked and by whom, so nothing may stand before them.
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    if settings.trusted_proxies:
        app.add_middleware(ForwardedFor, trusted=settings.trusted_proxies)
    error_handlers.install(app)
    for prefix in ("/v1", "") if settings.short_paths else ("/v1",):
        app.include_router(chat.router, prefix=prefix)
        app.include_router(completions.router, prefix=prefix)
        app.include_router(responses.router, prefix=prefix)
    app.include_router(explain.router)
    app.include_router(models.router)
    app.include_router(health.router)
    app.include_router(version.router)
    if settings.metrics != "off":
        app.include_router(metrics.router)
    if settings.docs != "off":
        app.include_router(docs.router)
        app.router.routes.append(docs.assets())
    routes.update(route.path for route in app.routes if isinstance(route, Route))
    return app


def open_paths(settings: Settings) -> list[str]:
    """Addresses that need no API key."""
    assets = [f"/{docs.ASSETS}/{name}" for name in docs.ASSET_NAMES]
    open_docs = ("/docs", "/openapi.json", *assets) if settings.docs == "open" else ()
    return [*HEALTH, *open_docs, *((metrics.PATH,) if settings.metrics == "open" else ())]
