"""Without API keys: no web page may use this server through the browser of somebody who can reach it.

A server without keys trusts whoever can connect, and a browser on the same machine can. Two ways lead a strange page
here. A key would close both, because no page knows it; so this stands only where there are no keys:

- A page sends a POST across origins. The browser hides the answer, but the server would have done the work. Browsers
  say in Origin and Sec-Fetch-Site where a request comes from, and no script can change that. The order of the
  questions is that of Go's ``http.CrossOriginProtection``.
- DNS rebinding: the page's own name is made to stand for this machine's address, and all is same-origin to the browser.
  Only the Host header gives it away: it holds the attacker's name. An IP address cannot be rebound, and neither can a
  name that nobody can register in public DNS: one without a dot, as a service's name inside Kubernetes or Compose, and
  those below ``RESERVED``. Every other name must be listed in ``--allowed-hosts``.

Inside CORS, so that a page from an allowed origin can read why it was refused.
"""

import ipaddress
import re
import socket
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from llava_api.errors import ErrorCode, Forbidden, InvalidRequest
from llava_api.server.error_handlers import error_response
from llava_api.settings import Settings
from llava_api.telemetry.metrics import HEALTH

RESERVED = ("localhost", "local", "internal", "home.arpa", "test", "svc")
"""Endings that public DNS does not hand out; ``svc``: Kubernetes, as in llava-api.my-namespace.svc."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""They change nothing, and a page of another origin cannot read the answer."""
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{0,5})?")
ONE_HOST = "A request must have one Host header, a name or an address with or without a port."
WRONG_HOST = (
    "This server has no API keys, so it answers only to IP addresses and to names that it knows, and the request's "
    "Host header is none of them. Whoever runs it can list the name with --allowed-hosts, or set API keys."
)
WRONG_ORIGIN = (
    "This server has no API keys, so it takes no requests from web pages of other origins. Whoever runs it can list "
    "the page's origin with --cors-allow-origins."
)


class Origins:
    """Refuses requests of strange web pages with 403."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = KnownHosts((*settings.allowed_hosts, settings.host, socket.gethostname()))
        self.origins = frozenset(settings.cors_allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in HEALTH:
            refusal = self.refusal(scope)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> InvalidRequest | None:
        hosts = header(scope, b"host")
        if not hosts and scope["http_version"] == "1.0":
            # No browser is as old as that.
            hosts = ["localhost"]
        host = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return InvalidRequest(ONE_HOST, code=ErrorCode.INVALID_HOST)
        if not self.hosts.know(host["name"]):
            return Forbidden(WRONG_HOST, code=ErrorCode.HOST_NOT_ALLOWED)
        if scope["method"] not in SAFE_METHODS and self.strange(scope, hosts[0]):
            return Forbidden(WRONG_ORIGIN, code=ErrorCode.ORIGIN_NOT_ALLOWED)
        return None

    def strange(self, scope: Scope, host: str) -> bool:
        """Whether a browser sent this for a page of another origin that is not allowed."""
        origins, sites = header(scope, b"origin"), header(scope, b"sec-fetch-site")
        if "*" in self.origins or (len(origins) == 1 and origins[0] in self.origins):
            return False
        if sites:
            return sites not in (["same-origin"], ["none"])
        # A proxy that speaks TLS changes the scheme, so the host alone is compared.
        return any(origin.partition("://")[2].lower() != host.lower() for origin in origins)


class KnownHosts:
    """Names that a request's Host header may have. ``listed``: more of them; ``*`` for any, ``*.example.com``."""

    def __init__(self, listed: Collection[str]) -> None:
        names = [name.lower().rstrip(".") for name in listed]
        self.any = "*" in names
        self.names = frozenset(names)
        self.endings = tuple(name[1:] for name in names if name.startswith("*."))

    def know(self, name: str) -> bool:
        name = name.lower().rstrip(".")
        if self.any or name in self.names or name.endswith(self.endings):
            return True
        if is_address(name.strip("[]")):
            return True
        return "." not in name or name.endswith(tuple(f".{ending}" for ending in RESERVED))


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
