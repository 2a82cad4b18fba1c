"""Answers ``/llava/v1/models`` as ``/v1/models`` too, for a proxy that serves the API under a path (--root-path).

The path is stripped before anything else reads it, so that routes, API keys and logs see the same one.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = self.strip(scope["path"])
            raw_path: bytes | None = scope.get("raw_path")
            if raw_path is not None:
                scope["raw_path"] = self.strip(raw_path.decode("latin-1")).encode("latin-1")
        await self.app(scope, receive, send)

    def strip(self, path: str) -> str:
        if path == self.root_path:
            return "/"
        return path.removeprefix(self.root_path) if path.startswith(f"{self.root_path}/") else path
