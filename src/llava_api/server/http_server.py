"""uvicorn's configuration, made of the settings: the one place that decides how this server speaks HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import uvicorn
from uvicorn.server import ServerState

from llava_api.errors import ErrorCode
from llava_api.server.connections import Connections
from llava_api.server.http_protocol import HttpProtocol
from llava_api.server.listening import room_for_connections
from llava_api.server.tls import Certificates, Handshake, certificates_of
from llava_api.settings import Settings

GRACE_SECONDS = 1
"""By the time that uvicorn closes, the drain is over (``lifecycle.py``)."""


def make_config(
    app: Callable[..., Any],
    settings: Settings,
    *,
    lifespan: Literal["on", "off"] = "on",
    certificates: Certificates | None = None,
    count_refusal: Callable[[ErrorCode | None], None] = lambda code: None,
    connections: Connections | None = None,
) -> uvicorn.Config:
    """Raises StartupError for certificates that cannot be used, unless they are given.

    ``count_refusal`` is told the code of each error that a caller got from below the app. ``connections``:
    where there may be another number of them than the settings say.
    """
    certificates = certificates or certificates_of(settings)
    registry = connections or Connections(room_for_connections(settings.max_connections))

    def make_protocol(
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        def make_http() -> HttpProtocol:
            return HttpProtocol(
                config,
                server_state,
                app_state,
                _loop,
                settings=settings,
                registry=registry,
                count_refusal=count_refusal,
            )

        if certificates is None:
            return make_http()
        return Handshake(certificates, settings, registry, server_state, make_http)

    return uvicorn.Config(
        app,
        http=make_protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan=lifespan,
        log_level="warning",
        # Set up by ourselves.
        log_config=None,
        access_log=False,
        server_header=False,
        # server/middleware/proxy.py does it, for nobody unless told.
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
