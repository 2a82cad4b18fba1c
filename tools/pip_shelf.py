"""pip's settings of this machine, for a build that runs elsewhere: as a pip.conf that is handed over as a secret.

An index or a folder of wheels on this machine's disk cannot be read from inside a build; a port of 127.0.0.1 can, where
the build shares this machine's network. So such folders are served for as long as the build takes.
"""

import ast
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PLACES = ("index-url", "extra-index-url", "find-links")
PASSED_ON = (*PLACES, "trusted-host", "proxy", "default-timeout", "timeout", "retries", "no-index")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""Where the Dockerfile mounts the secret ca.crt."""


def pip_settings() -> dict[str, str]:
    """What ``pip config list`` says, variables over files; names without their section."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    return settings_in(listing.stdout)


def settings_in(listing: str) -> dict[str, str]:
    """``global.find-links='/wheels'`` and the like -> option and value."""
    found: dict[str, tuple[bool, str]] = {}
    for line in listing.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            from_variable, option = name.startswith(":env:"), name.rpartition(".")[2]
            if from_variable or not found.get(option, (False, ""))[0]:
                found[option] = (from_variable, str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in found.items()}


def folder_of(place: str) -> Path | None:
    """The folder that a place to look for packages is; None where it is on the network."""
    path = Path(urllib.parse.unquote(place.removeprefix("file://")))
    return path if path.is_absolute() and path.is_dir() else None


class Shelf(SimpleHTTPRequestHandler):
    """Reads the folders in ``server.open_folders``, by their own paths, and nothing else."""

    def translate_path(self, path: str) -> str:
        wanted = Path(urllib.parse.unquote(urllib.parse.urlsplit(path).path)).resolve()
        folders: list[Path] = self.server.open_folders  # type: ignore[attr-defined]
        allowed = any(wanted.is_relative_to(folder.resolve()) for folder in folders)
        return str(wanted) if allowed else "/nothing/here"

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for every package."""


@contextmanager
def pip_conf(settings: dict[str, str]) -> Iterator[str]:
    """The text of a pip.conf that says the same; local folders are served until the end of the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        server.open_folders = []  # type: ignore[attr-defined]
        lines = ["[global]"]
        for option in PASSED_ON:
            if option not in settings:
                continue
            values = []
            for value in settings[option].split():
                folder = folder_of(value) if option in PLACES else None
                if folder is not None:
                    # An index's pages point at files beside it.
                    opened = folder if option == "find-links" else folder.parent
                    server.open_folders.append(opened)  # type: ignore[attr-defined]
                values.append(value if folder is None else f"{address}{urllib.parse.quote(str(folder))}/")
            lines.append(f"{option} = {' '.join(values)}")
        if "cert" in settings:
            lines.append(f"cert = {CERTIFICATES}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield "\n".join(lines) + "\n"
        finally:
            server.shutdown()
