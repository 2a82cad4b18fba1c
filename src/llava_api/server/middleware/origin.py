"""Without API keys: refuse requests of other origins' web pages, by the rules of ``web_origins``.

An API key would keep them out as well, because no page knows it, so this is used only without keys. It is inside CORS,
so that a page from an allowed origin can read why it was refused.
"""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_api.errors import ErrorCode, Forbidden, InvalidRequest
from llava_api.server.error_handlers import error_response
from llava_api.setting_types import ORIGIN
from llava_api.settings import Settings
from llava_api.web_origins import HOST, OriginRules, header

ONE_HOST = "A request must have one Host header, a name or an address with or without a port."
WRONG_HOST = (
    "This server has no API keys, so it answers only to IP addresses and to names that it knows, and the request's "
    "Host header is none of them. The operator can allow it with --allowed-hosts {}, or set API keys."
)
WRONG_ORIGIN = (
    "This server has no API keys, so requests from web pages of other origins are refused. The operator can allow this "
    "page's with --cors-allow-origins {}."
)
MAX_SHOWN = 100
"""Longer names are not repeated in messages."""


class Origins:
    """``open_paths`` are answered whatever Host and Origin a request has."""

    def __init__(self, app: ASGIApp, settings: Settings, open_paths: Collection[str]) -> None:
        self.app = app
        self.open_paths = frozenset(open_paths)
        self.rules = OriginRules((*settings.allowed_hosts, settings.host), settings.cors_allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            refusal = self.refusal(scope)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> InvalidRequest | None:
        match self.rules.broken_rule(scope):
            case "one host":
                return InvalidRequest(ONE_HOST, code=ErrorCode.INVALID_HOST)
            case "known host":
                return Forbidden(WRONG_HOST.format(shown_host(scope)), code=ErrorCode.HOST_NOT_ALLOWED)
            case "own origin":
                return Forbidden(WRONG_ORIGIN.format(shown_origin(scope)), code=ErrorCode.ORIGIN_NOT_ALLOWED)
            case None:
                return None


def shown_host(scope: Scope) -> str:
    """The name in the Host header, which the rules have found to be one."""
    host = HOST.fullmatch(header(scope, b"host")[0])
    return host["name"].lower() if host and len(host["name"]) <= MAX_SHOWN else "and its name"


def shown_origin(scope: Scope) -> str:
    """The page's origin, if it is one that can be listed."""
    origin = next(iter(header(scope, b"origin")), "")
    return origin if len(origin) <= MAX_SHOWN and ORIGIN.fullmatch(origin) else "and its origin"
