"""Which hosts and addresses may be dialled for an image. Nothing here uses the network.

A server that fetches what strangers name is a way into its own network (SSRF). So a URL is judged twice: by its text
(``check_url``) before its name is looked up, and by each address of the name (``check_address``) before
any is dialled. The reserved ranges are those of IANA's special-purpose address registries. They are listed here
because ``ipaddress.is_global`` differs between versions of Python (CPython gh-113171).
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx2

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared between carriers and their customers (CGNAT)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; clouds keep their metadata here
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "168.63.129.16/32",  # a public address that one large cloud answers inside its machines
    )
)
GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
NOT_PUBLIC_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
"""Within global unicast. Addresses outside it (site-local, unique local, link-local, mapped ...) are not public."""
NAT64 = IPv6Network("64:ff9b::/96")
"""Addresses through which a network without IPv4 reaches IPv4 hosts: the last 32 bits are the host's address."""

NUMERIC_LABEL = re.compile(r"0x[0-9a-f]*|[0-9]+")
DEFAULT_PORTS = {"http": 80, "https": 443}


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    if address in NAT64:
        return is_public(IPv4Address(address.packed[-4:]))
    return address in GLOBAL_UNICAST_6 and not any(address in network for network in NOT_PUBLIC_6)


class Guard:
    """What one server's settings allow.

    ``allowed_cidrs``: networks that may be dialled although they are not public. ``allowed_domains``: if not empty, the
    only hosts whose images are fetched; ``*.example.com`` means every host below example.com.
    """

    def __init__(
        self, allowed_cidrs: Sequence[str], allowed_domains: Sequence[str], allowed_ports: Sequence[int]
    ) -> None:
        self.networks = tuple(ip_network(text, strict=False) for text in allowed_cidrs)
        self.domains = tuple(domain.lower().rstrip(".") for domain in allowed_domains)
        self.ports = frozenset(allowed_ports)

    def check_address(self, address: str) -> bool:
        """Whether a numeric address may be dialled."""
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if isinstance(found, IPv6Address):
            if found.scope_id is not None:
                return False
            if found.ipv4_mapped is not None:
                # The system dials the IPv4 address in it.
                found = found.ipv4_mapped
        return is_public(found) or any(found in network for network in self.networks)

    def check_url(self, url: httpx2.URL) -> bool:
        """Whether the name in a URL may be looked up: scheme, port, host, and nothing before an ``@``."""
        if url.scheme not in DEFAULT_PORTS or url.userinfo:
            return False
        if (url.port or DEFAULT_PORTS[url.scheme]) not in self.ports:
            return False
        return self.check_host(url.raw_host.decode("ascii").lower().rstrip("."))

    def check_host(self, host: str) -> bool:
        if not host or (self.domains and not any(matches(domain, host) for domain in self.domains)):
            return False
        if ":" in host or NUMERIC_LABEL.fullmatch(host.rsplit(".", 1)[-1]):
            # An address, not a name. Only the system's resolver takes 127.1, 0177.0.0.1, 0x7f000001 and 2130706433 for
            # addresses; ip_address takes only the plain spelling.
            return self.check_address(host)
        return True


def matches(domain: str, host: str) -> bool:
    """Whether an allowed domain includes a host."""
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain
