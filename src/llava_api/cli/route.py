"""``llava-api route``: one address for several servers, which may run anywhere."""

import argparse
import asyncio
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.applications import Starlette

from llava_api.cli.flags import FRONT_SETTINGS, add_flags, read_settings
from llava_api.cli.notify import notify
from llava_api.cli.serve import Front, announce, opened_front
from llava_api.cli.terminal import set_up_logging
from llava_api.errors import StartupError
from llava_api.limits.keys import plain_key
from llava_api.server.connections import ConnectionLimit
from llava_api.server.http_server import DrainingServer, make_config
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.lifespan import watch_files
from llava_api.server.listening import room_for_connections
from llava_api.server.side_port import side_port
from llava_api.settings import Settings
from llava_api.telemetry.router_metrics import RouterMetrics
from llava_api.versions import all_versions

if TYPE_CHECKING:
    from llava_api.routing.backends import Backends

log = logging.getLogger("llava_api")
ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?/?|unix:/.+")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("route", help="one address for several servers", description=__doc__)
    parser.add_argument(
        "--backend",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="a server, as http://gpu1:8000, https://... or unix:/PATH; a name with several addresses is several "
        "replicas, and is looked up again every few seconds. May be repeated.",
    )
    parser.add_argument(
        "--backend-key-file",
        metavar="FILE",
        type=Path,
        help="file with the API key to list the models of servers that have keys, or a folder of which the first key "
        "that is not a hash is taken; requests keep their callers' own",
    )
    parser.add_argument(
        "--sleeping-model",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that may have no server until somebody asks for it: requests wait for one, up to "
        "--request-timeout-seconds. May be repeated.",
    )
    add_flags(parser, names=FRONT_SETTINGS)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    from llava_api.routing.replicas import Replicas

    # Until uvicorn handles the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = read_settings(chosen)
    set_up_logging(settings.log_level, settings.log_format)
    for address in chosen.backend:
        if not is_address(address):
            raise StartupError(f"--backend {address}: write it as http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    key = chosen.backend_key_file and chosen.backend_key_file.expanduser()
    if key is not None:
        plain_key(key)
    with opened_front(settings) as front:
        replicas = Replicas(chosen.backend, settings, RouterMetrics(all_versions()), key, chosen.sleeping_model)
        serve_backends(replicas, settings, front)


def serve_backends(backends: "Backends", settings: Settings, front: Front) -> None:
    """Serve ``backends`` under one address until a signal ends it. Raises what ended it otherwise."""
    from llava_api.routing.proxy import Router, router_app

    lifecycle = Lifecycle(settings.drain_timeout_seconds)
    router = Router(settings, backends, lifecycle)

    async def load() -> Router:
        await backends.start()
        router.state.loaded = True
        names = [str(card["id"]) for card in backends.models()]
        log.info("models: %s", ", ".join(names))
        announce(names[0], settings, front)
        return router

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        refreshes = [front.keys.refresh, *([front.certificates.refresh] if front.certificates is not None else [])]
        async with side_port(app, front.side, settings):
            tasks = [asyncio.create_task(lifecycle.run(load)), asyncio.create_task(watch_files(refreshes))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await backends.close()

    config = make_config(
        router_app(router, front.keys, lifespan),
        settings,
        certificates=front.certificates,
        count_refusal=backends.metrics.reject,
        # Each open request has a connection to a backend too.
        connection_limit=ConnectionLimit(room_for_connections(2 * settings.max_connections) // 2),
    )
    DrainingServer(config, lifecycle, on_signal=lambda: notify("STOPPING=1")).run(sockets=[front.main])
    if lifecycle.failure is not None:
        raise lifecycle.failure


def is_address(text: str) -> bool:
    try:
        # The port is 65535 at most.
        return ADDRESS.fullmatch(text) is not None and urlsplit(text).port != 0
    except ValueError:
        return False
