"""A path with slashes too many is answered as the path without them: base URLs often end with one.

This comes before everything that reads the path, so that routes, API keys and logs see the same one.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send


def single_slashes(path: str) -> str:
    """``//v1/models/`` -> ``/v1/models``."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


class Slashes:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/"):
            scope["path"] = single_slashes(scope["path"])
            raw_path: bytes | None = scope.get("raw_path")
            if raw_path is not None:
                scope["raw_path"] = single_slashes(raw_path.decode("latin-1")).encode("latin-1")
        await self.app(scope, receive, send)
