"""The client's address and scheme as trusted proxies name them, in ``X-Forwarded-For`` and ``X-Forwarded-Proto``."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send


class ForwardedFor:
    """Replaces a trusted proxy's address in the scope by the address of the proxy's client.

    Each proxy appends the address that called it, so the client is the last address that is no trusted proxy. The
    addresses before it were written by the client and may be forged. In ``trusted``, ``unix`` means the other side of a
    Unix socket.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self.app = app
        self.trusts_unix = "unix" in trusted
        self.networks: list[IPv4Network | IPv6Network] = [ip_network(one) for one in trusted if one != "unix"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope.get("client")
            if self.trusts_unix if peer is None else self.trusts(peer[0]):
                self.rewrite(scope)
        await self.app(scope, receive, send)

    def trusts(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self.networks)

    def rewrite(self, scope: Scope) -> None:
        addresses: list[str] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                addresses += value.decode("latin-1").split(",")
            elif name == b"x-forwarded-proto" and value.strip().lower() in (b"http", b"https"):
                scope["scheme"] = value.strip().lower().decode()
        for text in reversed(addresses):
            try:
                client = str(ip_address(without_port(text.strip())))
            except ValueError:
                # An unreadable address: the client counts as the last proxy that was named.
                return
            scope["client"] = (client, 0)
            if not self.trusts(client):
                return


def without_port(text: str) -> str:
    """``[::1]:80`` -> ``::1``, ``1.2.3.4:80`` -> ``1.2.3.4``."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
