"""``llava-api ui``: serve a chat page for the browser, for any OpenAI-compatible API."""

import argparse
import importlib.util
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from llava_api.cli.endpoint import BASE_URL, is_web_address
from llava_api.cli.flags import add_flags, read_settings
from llava_api.errors import StartupError
from llava_api.setting_types import Mark
from llava_api.settings import Settings
from llava_api.web_origins import is_loopback

PORT = 7860
WAITING_REQUESTS = 8
"""Requests whose images the upload folder may hold at once."""
MISSING = (
    "the page needs Gradio, which is not installed here: pip install 'llava-api[ui]', or in the repository `make demo`"
)


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
        type=int,
        default=PORT,
        metavar="PORT",
        help=f"0 takes a free one (default: {PORT})",
    )
    parser.add_argument(
        "--allow-anonymous",
        dest="page_allow_anonymous",
        action="store_true",
        help="let everybody on the network use the page: it has no passwords; needed if --host can be reached from "
        "other machines",
    )
    parser.add_argument(
        "--allowed-hosts",
        dest="page_allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the page for the Host header, as behind a proxy; IP addresses and names without a dot are always "
        "allowed. May be repeated",
    )
    add_flags(parser, Mark.IMAGE_LIMIT)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    """Raises StartupError."""
    if not is_web_address(chosen.base_url):
        raise StartupError(f"--base-url must start with http:// or https://, as in {BASE_URL}: {chosen.base_url}")
    settings = read_settings(chosen)
    if not (chosen.page_allow_anonymous or is_loopback(chosen.page_host)):
        raise StartupError(
            f"--host {chosen.page_host} opens the page to the network, and it has no passwords: put it behind a proxy "
            "that asks for one, or set --allow-anonymous to let everybody use it"
        )
    if importlib.util.find_spec("gradio") is None:
        raise StartupError(MISSING)
    hosts = (chosen.page_host, *chosen.page_allowed_hosts)
    with upload_folder() as folder, listen(chosen.page_host, chosen.page_port) as listener:
        serve(chosen.base_url, settings, hosts, folder, listener)


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder that only this user can open, and that is deleted at the end."""
    # Until uvicorn handles the signal: without a handler the folder would remain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="llava-api-ui-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


def listen(host: str, port: int) -> socket.socket:
    """Raises StartupError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen on {host}:{port} ({reason}): choose another --host or --port") from error


def serve(base_url: str, settings: Settings, hosts: Collection[str], folder: Path, listener: socket.socket) -> None:
    # Gradio reads these when it is imported: it reports nothing to anybody and writes only into this process's folder.
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_SSR_MODE="False",
        GRADIO_RUN_HISTORY="False",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="1",
    )
    from llava_api.cli.api_client import ApiClient
    from llava_api.cli.ui.open_pages import ImageLimits
    from llava_api.cli.ui.uploads import Uploads
    from llava_api.cli.ui.web import create_web_app

    api = ApiClient(
        base_url,
        start_advice="start one with `llava-api serve`, or start this page with the --base-url of another",
        key_advice="enter yours under Settings",
    )
    limits = ImageLimits.from_settings(settings)
    uploads = Uploads(folder, WAITING_REQUESTS * limits.all_bytes)
    app = create_web_app(api, uploads, limits, hosts)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, ws="none"
    )
    address, number = listener.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    line = f"The page: http://{name}:{number}/  (asks {base_url}; Ctrl-C ends it)"
    Server(config, line).run(sockets=[listener])


class Server(uvicorn.Server):
    """Prints a line when the page can be opened."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self.line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.line, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # An open page holds its streams for ever, so uvicorn would wait for them in vain.
        for connection in self.server_state.connections:
            connection.transport.close()
        await super().shutdown(sockets)
