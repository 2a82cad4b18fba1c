"""Who is asking, behind a proxy: ``X-Forwarded-For`` and ``X-Forwarded-Proto``, of proxies that are named alone."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

Addresses = list[IPv4Network | IPv6Network]


class ForwardedFor:
    """Puts the client that a trusted proxy names in the place of the proxy.

    Each proxy writes the address that it was called from at the end of the list, so the client is the last one that is
    no trusted proxy itself; what stands before it was written by the client. ``unix`` among ``trusted`` is the peer of
    a Unix socket.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self.app = app
        self.unix = "unix" in trusted
        self.networks: Addresses = [ip_network(one) for one in trusted if one != "unix"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope.get("client")
            if self.unix if peer is None else self.trusts(peer[0]):
                self.rewrite(scope)
        await self.app(scope, receive, send)

    def trusts(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self.networks)

    def rewrite(self, scope: Scope) -> None:
        chain: list[str] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                chain += value.decode("latin-1").split(",")
            elif name == b"x-forwarded-proto" and value.strip().lower() in (b"http", b"https"):
                scope["scheme"] = value.strip().lower().decode()
        for written in reversed(chain):
            address = without_port(written.strip())
            try:
                client = str(ip_address(address))
            except ValueError:
                # No address: whoever wrote it hides behind the proxy before it.
                return
            scope["client"] = (client, 0)
            if not self.trusts(client):
                return


def without_port(text: str) -> str:
    """``[::1]:80`` -> ``::1``, ``1.2.3.4:80`` -> ``1.2.3.4``."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
