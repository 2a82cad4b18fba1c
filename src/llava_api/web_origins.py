"""Rules for the Host and Origin headers, which keep other web pages out of a server that asks for no password.

Such a server trusts everything that can connect to it, and a browser on the same machine can. A web page that somebody
else made could use the browser in two ways:

- It sends a POST across origins. The browser hides the answer from the page, but the server would have done the work.
  Browsers say in Origin and Sec-Fetch-Site where a request comes from, and no script can change that. The order of the
  checks is that of Go's ``http.CrossOriginProtection``.
- DNS rebinding: the page's own name is made to resolve to this machine's address, so the browser takes all for one
  origin. Only the Host header gives it away: it holds the attacker's name. An IP address cannot be rebound, nor can a
  name that cannot be registered in public DNS: one without a dot, such as a service's name inside Kubernetes or
  Compose, and those below ``RESERVED``. Every other name must be listed.

``llava-api serve`` without API keys and ``llava-api ui`` use these rules.
"""

import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from typing import Any, Literal

RESERVED = ("localhost", "local", "internal", "home.arpa", "test", "svc")
"""Endings that public DNS does not hand out; ``svc``: Kubernetes, as in llava-api.my-namespace.svc."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""They change nothing, and a page of another origin cannot read the answer."""
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{0,5})?")


class OriginRules:
    def __init__(self, hosts: Collection[str], origins: Collection[str] = ()) -> None:
        """``hosts``: names that the Host header may hold besides those that are always safe; ``*`` allows any name and
        ``*.example.com`` all names below one. ``origins``: origins whose pages may send requests; ``*`` allows all.
        """
        names = [name.lower().rstrip(".") for name in (*hosts, socket.gethostname())]
        self.any_host = "*" in names
        self.hosts = frozenset(names)
        self.host_endings = tuple(name[1:] for name in names if name.startswith("*."))
        self.origins = frozenset(origins)
        self.origin_pattern = re.compile(pattern_of_origins(origins) or "(?!)")

    def broken_rule(self, scope: Mapping[str, Any]) -> Literal["one host", "known host", "own origin"] | None:
        """The first rule that a request breaks. ``scope`` is ASGI's, of an HTTP request."""
        hosts = header(scope, b"host")
        if not hosts and scope["http_version"] == "1.0":
            # Browsers speak 1.1 or newer, so no web page can have sent this.
            hosts = ["localhost"]
        host = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return "one host"
        if not self.is_known_host(host["name"]):
            return "known host"
        if scope["method"] not in SAFE_METHODS and self.is_cross_origin(scope, hosts[0]):
            return "own origin"
        return None

    def is_known_host(self, name: str) -> bool:
        name = name.lower().rstrip(".")
        if self.any_host or name in self.hosts or name.endswith(self.host_endings):
            return True
        if is_address(name.strip("[]")):
            return True
        return "." not in name or name.endswith(tuple(f".{ending}" for ending in RESERVED))

    def is_cross_origin(self, scope: Mapping[str, Any], host: str) -> bool:
        """Whether a browser sent this for a page of another origin that is not allowed."""
        origins, sites = header(scope, b"origin"), header(scope, b"sec-fetch-site")
        if "*" in self.origins:
            return False
        if len(origins) == 1 and (origins[0] in self.origins or self.origin_pattern.fullmatch(origins[0])):
            return False
        if sites:
            return sites not in (["same-origin"], ["none"])
        # A proxy that ends TLS changes the scheme, so only the host is compared.
        return any(origin.partition("://")[2].lower() != host.lower() for origin in origins)


def pattern_of_origins(origins: Collection[str]) -> str | None:
    """A regular expression for those that end with ``*``: ``http://localhost:*``, ``chrome-extension://*``."""
    ports = [re.escape(text.removesuffix(":*")) + r"(:\d{1,5})?" for text in origins if text.endswith(":*")]
    hosts = [re.escape(text.removesuffix("*")) + r"[^/\s]+" for text in origins if text.endswith("://*")]
    return "|".join((*ports, *hosts)) or None


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a server that listens on ``host`` can be reached only from this machine."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def header(scope: Mapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
