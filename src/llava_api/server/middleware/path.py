"""Cleans a request's path before anything else reads it, so that routes, API keys and logs see the same one.

Slashes too many are removed, because base URLs often end with one. ``--root-path`` is removed, whether or not the proxy
that serves the API under it has done so: ``/llava/v1/models`` is ``/v1/models``.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send


def single_slashes(path: str) -> str:
    """``//v1/models/`` -> ``/v1/models``."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


class CleanPath:
    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/"):
            scope["path"] = self.cleaned(scope["path"])
            # Optional in ASGI, and not cleaned.
            scope.pop("raw_path", None)
        await self.app(scope, receive, send)

    def cleaned(self, path: str) -> str:
        path = single_slashes(path)
        if path == self.root_path:
            return "/"
        return path.removeprefix(self.root_path) if path.startswith(f"{self.root_path}/") else path
