"""Every request needs an API key, except for the open paths.

This is decided by ASGI's ``path``, by which routes are chosen too, and which no Host header and no absolute-form target
can change. And open paths are listed, so that a path which is missing from the list needs a key.
"""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_api.errors import Unauthorized
from llava_api.limits.keys import KeyRing
from llava_api.server.dialects import dialect_of
from llava_api.server.error_handlers import error_response
from llava_api.server.state import exchange_of

MISSING = (
    "You did not provide an API key: send it as the header Authorization: Bearer YOUR_KEY "
    "(the openai client's api_key)."
)
MISSING_WITH_HEADER = (
    "You did not provide an API key: send it as the header {0}: YOUR_KEY, or as Authorization: Bearer YOUR_KEY."
)
WRONG = "Incorrect API key provided: this server has no such key."


class Authentication:
    """Notes the key's name in the exchange."""

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str]) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.keys.needed or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        key_header = dialect_of(scope["path"]).key_header
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        bare = [value for name, value in scope["headers"] if name == key_header]
        token = token_of(given[0]) if len(given) == 1 else None
        name = None if token is None else self.keys.find(token)
        if name is None and len(bare) == 1:
            # Clients may send one of the two headers without a key of this server in it.
            name = self.keys.find(bare[0].decode("latin-1").strip())
        if name is None:
            missing = MISSING if key_header is None else MISSING_WITH_HEADER.format(key_header.decode())
            refusal = Unauthorized(WRONG if given or bare else missing)
            await error_response(refusal, {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        exchange_of(scope).key_name = name
        await self.app(scope, receive, send)


def token_of(header: bytes) -> str | None:
    """``Bearer KEY`` -> KEY; None for any other form."""
    scheme, _, token = header.decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
