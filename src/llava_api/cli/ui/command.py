"""``llava-api ui``: a chat page in the browser, for this server or any other with OpenAI's API."""

import argparse
import asyncio
import importlib.util
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import uvicorn

from llava_api.cli.flags import add_flags, read_settings
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import Settings
from llava_api.web_origins import is_loopback

BASE_URL = "http://127.0.0.1:8000/v1"
PORT = 7860
WAITING_REQUESTS = 8
"""Requests whose pictures may lie in the upload folder at once."""
MISSING = (
    "the page needs Gradio, which is not installed here: pip install 'llava-api[ui]', or in the repository `make demo`"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the page is served."""

    host: str
    port: int
    allowed_hosts: tuple[str, ...]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("ui", help="a chat page in the browser", description=__doc__)
    parser.add_argument(
        "--base-url", default=BASE_URL, metavar="URL", help=f"the API, with its /v1 (default: {BASE_URL})"
    )
    # Names of their own: the server's variables (LLAVA_HOST, LLAVA_PORT) are not about the page.
    parser.add_argument(
        "--host",
        dest="page_host",
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen on (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        dest="page_port",
        type=port,
        default=PORT,
        metavar="PORT",
        help=f"0 takes a free one (default: {PORT})",
    )
    parser.add_argument(
        "--allow-anonymous",
        dest="page_allow_anonymous",
        action="store_true",
        help="let everybody on the network use the page: it has no passwords; needed for a --host that is not this "
        "machine alone",
    )
    parser.add_argument(
        "--allowed-hosts",
        dest="page_allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which the page is asked for, as behind a proxy; IP addresses and names without a dot always "
        "may. May be repeated",
    )
    add_flags(parser, Mark.IMAGE_LIMIT)
    parser.set_defaults(run=run)


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is 0 to 65535")
    return number


def run(chosen: argparse.Namespace) -> None:
    """Raises StartupError."""
    base_url = checked_url(chosen.base_url)
    place = Place(chosen.page_host, chosen.page_port, tuple(chosen.page_allowed_hosts))
    settings = read_settings(chosen)
    if not (chosen.page_allow_anonymous or is_loopback(place.host)):
        raise StartupError(
            f"--host {place.host} opens the page to the network, and it has no passwords: put it behind a proxy that "
            "asks for one, or say --allow-anonymous to let everybody use it"
        )
    if importlib.util.find_spec("gradio") is None:
        raise StartupError(MISSING)
    with folder_of_this_process() as folder, listening(place) as listener:
        serve(base_url, settings, place, folder, listener)


def checked_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartupError(f"--base-url is not a URL as {BASE_URL}: {text}")
    return text.rstrip("/")


@contextmanager
def folder_of_this_process() -> Iterator[Path]:
    """For what is uploaded; only this user may look inside, and it is deleted at the end."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    # Until uvicorn has its own way to stop: a folder is never left behind.
    signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory(prefix="llava-api-ui-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


@contextmanager
def listening(place: Place) -> Iterator[socket.socket]:
    """Raises StartupError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {place.host}:{place.port} ({error.strerror}): choose another --host or --port"
        ) from error
    with listener:
        yield listener


def serve(base_url: str, settings: Settings, place: Place, folder: Path, listener: socket.socket) -> None:
    # Read by Gradio when it is imported: nothing is told to anybody, and files lie in this process's folder alone.
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_SSR_MODE="False",
        GRADIO_RUN_HISTORY="False",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="1",
    )
    from llava_api.cli.ui.client import Api
    from llava_api.cli.ui.conversation import PictureLimits
    from llava_api.cli.ui.uploads import Uploads
    from llava_api.cli.ui.web import create_web_app

    limits = PictureLimits.of(settings)
    uploads = Uploads(folder, WAITING_REQUESTS * limits.all_bytes)
    app = create_web_app(Api(base_url), uploads, limits, (place.host, *place.allowed_hosts))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, ws="none"
    )
    address, number = listener.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    line = f"The page: http://{name}:{number}/  (asks {base_url}; Ctrl-C ends it)"
    Announcing(config, line, app.closing).run(sockets=[listener])


class Announcing(uvicorn.Server):
    """Says where the page is when it can be opened, and ends what open pages hold when it is to end."""

    def __init__(self, config: uvicorn.Config, line: str, closing: asyncio.Event) -> None:
        super().__init__(config)
        self.line = line
        self.closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.closing.set()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.line, flush=True)
