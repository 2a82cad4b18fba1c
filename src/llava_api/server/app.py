"""The application: state, middleware, error handlers and routes. Everything is made per app; there are no globals."""

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from fastapi import FastAPI
from starlette.applications import Starlette

from llava_api import __version__
from llava_api.limits.keys import KeyRing
from llava_api.server import error_handlers
from llava_api.server.endpoint import Endpoint, routes_of
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.middleware.access import Access
from llava_api.server.middleware.authentication import Authentication
from llava_api.server.middleware.availability import Availability
from llava_api.server.middleware.cors import Cors
from llava_api.server.middleware.exchange import ExchangeMiddleware
from llava_api.server.middleware.origin import Origins
from llava_api.server.middleware.path import CleanPath
from llava_api.server.middleware.proxy import ForwardedFor
from llava_api.server.routes import ENDPOINTS, docs, probes
from llava_api.server.services import Services
from llava_api.server.state import AppState, set_state
from llava_api.settings import Settings
from llava_api.telemetry.metrics import Metrics, RequestMetrics
from llava_api.telemetry.tracing import Tracing
from llava_api.versions import all_versions
from llava_api.web_origins import pattern_of_origins

RATE_LIMIT_HEADERS = [
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    settings: Settings,
    keys: KeyRing,
    services: Services | None = None,
    lifespan: Lifespan | None = None,
    lifecycle: Lifecycle | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """``services`` is None if ``lifespan`` makes them when the server starts."""
    endpoints = served_endpoints(settings, (*ENDPOINTS, *docs.ENDPOINTS))
    app = FastAPI(
        title="llava-api",
        version=__version__,
        lifespan=lifespan,
        routes=routes_of(endpoints),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # ``CleanPath`` removes such slashes. Clients do not follow a redirect of a POST.
        redirect_slashes=False,
    )
    state = AppState()
    set_state(app, state)
    state.services, state.loaded = services, services is not None
    state.lifecycle = lifecycle or Lifecycle()
    # /metrics answers before the services are there.
    state.metrics = Metrics(all_versions()) if services is None else services.metrics
    state.tracing = tracing
    add_middleware(app, settings, keys, endpoints, state.lifecycle, lambda: state.loaded, state.metrics, tracing)
    error_handlers.install(app, ollama_api=settings.ollama_api, stores_files=settings.data_dir is not None)
    return app


def add_middleware(
    app: Starlette,
    settings: Settings,
    keys: KeyRing,
    endpoints: Collection[Endpoint],
    lifecycle: Lifecycle,
    is_loaded: Callable[[], bool],
    metrics: RequestMetrics,
    tracing: Tracing | None,
) -> None:
    """What every request passes before its endpoint."""
    probe_paths = {endpoint.path for endpoint in endpoints if endpoint.probe}
    open_paths = {endpoint.path for endpoint in endpoints if endpoint.access(settings) == "open"}
    # The middleware that is added last is called first.
    app.add_middleware(Availability, lifecycle=lifecycle, is_loaded=is_loaded, open_paths=probe_paths)
    app.add_middleware(Authentication, keys=keys, open_paths=open_paths)
    if not keys.needed:
        app.add_middleware(Origins, settings=settings, open_paths={endpoint.path for endpoint in probes.HEALTH})
    if settings.cors_allow_origins:
        app.add_middleware(
            Cors,
            allow_origins=settings.cors_allow_origins,
            allow_origin_regex=pattern_of_origins(settings.cors_allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-llava-ignored", "retry-after", "retry-after-ms", *RATE_LIMIT_HEADERS],
        )
    app.add_middleware(
        Access,
        metrics=metrics,
        routes={endpoint.pattern for endpoint in endpoints},
        probes=probe_paths,
        tracing=tracing,
        log_prompts=settings.log_prompts,
    )
    app.add_middleware(ExchangeMiddleware, takes_request_ids=settings.accept_request_ids)
    # These change the path and the client's address, so they come before everything that reads them.
    app.add_middleware(CleanPath, root_path=settings.root_path)
    if settings.trusted_proxies:
        app.add_middleware(ForwardedFor, trusted=settings.trusted_proxies)


def served_endpoints(settings: Settings, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    served = [each for each in endpoints if each.access(settings) != "off"]
    if settings.short_paths:
        served += [
            replace(each, path=each.path.removeprefix("/v1"), route=each.route.removeprefix("/v1"))
            for each in served
            if each.short_path
        ]
    return served
