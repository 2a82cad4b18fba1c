"""uvicorn's configuration for both ports, made from the settings."""

import types
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import uvicorn

from llava_api.errors import ErrorCode
from llava_api.server.connections import ConnectionLimit
from llava_api.server.http_protocol import HttpProtocol
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.listening import room_for_connections
from llava_api.server.tls import Certificates
from llava_api.settings import Settings

GRACE_SECONDS = 1
"""When uvicorn closes, the requests have ended already (``lifecycle.py``)."""


class DrainingServer(uvicorn.Server):
    """Drains at a signal (``lifecycle.py``), for which uvicorn by itself would close the port at once."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self.lifecycle = lifecycle
        self.on_signal = on_signal

        def close_port() -> None:
            self.should_exit = True

        lifecycle.on_end = close_port

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        self.on_signal()
        self.lifecycle.stop()


def make_config(
    app: Callable[..., Any],
    settings: Settings,
    *,
    lifespan: Literal["on", "off"] = "on",
    certificates: Certificates | None = None,
    count_refusal: Callable[[ErrorCode | None], None] = lambda code: None,
    connection_limit: ConnectionLimit | None = None,
) -> uvicorn.Config:
    """``certificates``: for https.

    ``count_refusal`` is called with the code of each error that is answered below the app. ``connection_limit`` takes
    the place of the setting's.
    """
    return uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]
            HttpProtocol,
            settings=settings,
            connection_limit=connection_limit or limit_connections(settings),
            count_refusal=count_refusal,
        ),
        ws="none",
        lifespan=lifespan,
        log_level="warning",
        # The command line has configured logging.
        log_config=None,
        access_log=False,
        server_header=False,
        # server/middleware/proxy.py reads the headers of proxies, and only of those that are trusted.
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=None if certificates is None else certificates.context_for_uvicorn,
    )


def limit_connections(settings: Settings) -> ConnectionLimit:
    return ConnectionLimit(room_for_connections(settings.max_connections))
