"""Which addresses may be dialled for an image.

The ranges are those of IANA's special-purpose address registries (https://www.iana.org/assignments/
iana-ipv4-special-registry and iana-ipv6-special-registry) and the multicast and unassigned space of its address
registries, each at both of its ends; next to them the public neighbours.
"""

import httpx2
import pytest

from llava_api.images.guard import Guard

PORTS = (80, 443)
OPEN = Guard((), (), PORTS)

INNER_4 = {
    "this network": ("0.0.0.0", "0.0.0.1", "0.255.255.255"),
    "private": ("10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"),
    "shared, CGNAT": ("100.64.0.0", "100.100.100.200", "100.127.255.255"),
    "loopback": ("127.0.0.0", "127.0.0.1", "127.255.255.255"),
    "link-local, metadata": ("169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.255.255"),
    "protocol assignments": ("192.0.0.0", "192.0.0.8", "192.0.0.170", "192.0.0.192", "192.0.0.255"),
    "documentation": ("192.0.2.1", "198.51.100.255", "203.0.113.0"),
    "6to4 relays": ("192.88.99.0", "192.88.99.255"),
    "benchmarking": ("198.18.0.0", "198.19.255.255"),
    "multicast": ("224.0.0.0", "239.255.255.255"),
    "reserved": ("240.0.0.0", "255.255.255.254"),
    "broadcast": ("255.255.255.255",),
}
INNER_6 = {
    "unspecified, loopback": ("::", "::1"),
    "IPv4-compatible": ("::7f00:1", "::10.0.0.1", "::169.254.169.254", "::8.8.8.8"),
    "IPv4-translated": ("::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"),
    "local NAT64": ("64:ff9b:1::", "64:ff9b:1::7f00:1", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
    "discard": ("100::", "100::ffff:ffff:ffff:ffff", "100:0:0:1::1"),
    "Teredo": ("2001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"),
    "protocol assignments": ("2001:2::", "2001:2:0:ffff::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    "ORCHID": ("2001:10::", "2001:1f:ffff::", "2001:20::", "2001:2f:ffff::"),
    "documentation": ("2001:db8::", "2001:db8:ffff:ffff::1", "3fff::", "3fff:fff:ffff::1"),
    "6to4": ("2002::", "2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "2002:808:808::1"),
    "segment routing": ("5f00::", "5f00:ffff::1"),
    "not assigned": ("4000::", "8000::1", "f000::1"),
    "unique local": ("fc00::", "fd00:ec2::254", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    "link-local": ("fe80::", "fe80::1", "febf:ffff::1", "fe80::1%eth0", "fe80::1%1"),
    "site-local": ("fec0::", "fec0::1", "feff:ffff::1"),
    "multicast": ("ff00::", "ff02::1", "ff0e::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
}
PUBLIC = (
    "1.0.0.0",
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "203.0.114.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2400:cb00::1",
    "2606:4700:4700::1111",
    "2620:fe::fe",
    "2a00:1450:4001:80b::200e",
)
NO_ADDRESS = (
    "",
    " ",
    "localhost",
    "example.com",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "017700000001",
    "127.1",
    "127.0.1",
    "08.8.8.8",
    "8.8.8.8 ",
    " 8.8.8.8",
    "8.8.8.8/32",
    "8.8.8.8:80",
    "8.8.8.256",
    "8.8.8",
    "[::1]",
    "::1%",
    "1.1.1.1\n",
    "\u0661.\u0661.\u0661.\u0661",
)
INNER_4_FLAT = [address for addresses in INNER_4.values() for address in addresses]


@pytest.mark.parametrize("kind", INNER_4)
def test_inner_addresses(kind: str) -> None:
    assert [address for address in INNER_4[kind] if OPEN.check_address(address)] == []


@pytest.mark.parametrize("kind", INNER_6)
def test_inner_ipv6_addresses(kind: str) -> None:
    assert [address for address in INNER_6[kind] if OPEN.check_address(address)] == []


@pytest.mark.parametrize("form", ["::ffff:{}", "64:ff9b::{}", "0:0:0:0:0:FFFF:{}", "::{}", "::ffff:0:{}"])
def test_inner_addresses_written_as_ipv6(form: str) -> None:
    assert [address for address in INNER_4_FLAT if OPEN.check_address(form.format(address))] == []


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert OPEN.check_address(address)


@pytest.mark.parametrize("text", NO_ADDRESS)
def test_what_is_no_plain_address(text: str) -> None:
    assert not OPEN.check_address(text)


def test_a_network_of_the_operators_widens_and_nothing_else() -> None:
    guard = Guard(("10.1.0.0/16", "192.168.7.9/32", "fd00:7::/64"), (), PORTS)
    assert all(map(guard.check_address, ("10.1.0.0", "10.1.255.255", "192.168.7.9", "fd00:7::1", "8.8.8.8")))
    assert not any(
        map(guard.check_address, ("10.0.255.255", "10.2.0.0", "192.168.7.8", "fd00:7:0:1::", "127.0.0.1", "::1"))
    )


def may_look_up(guard: Guard, url: str) -> bool:
    return guard.check_url(httpx2.URL(url))


def test_schemes_ports_and_user_names() -> None:
    for url in (
        "http://a.example/",
        "https://a.example/",
        "http://a.example:443/",
        "https://a.example:80/",
        "HTTP://A.EXAMPLE",
    ):
        assert may_look_up(OPEN, url)
    for url in (
        "http://a.example:8080/",
        "http://a.example:22/",
        "http://user@a.example/",
        "http://:word@a.example/",
        "http://user:word@a.example/",
        "http://a.example%40b.example:word@c.example/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "ws://a.example/",
        "http:///a.png",
        "/a.png",
    ):
        assert not may_look_up(OPEN, url)
    assert may_look_up(Guard((), (), (8080,)), "http://a.example:8080/")
    assert not may_look_up(Guard((), (), (8080,)), "http://a.example/")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0x7f.0x0.0x0.0x1",
        "0177.0.0.1",
        "0177.1",
        "017700000001",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "127.0.0.0x1",
        "127.0.0.00001",
        "4294967295",
        "99999999999",
        "1.2.3.4.5",
        "0x",
        "0X7F.1",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "\u2460\u2461\u2466.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1]",
        "[fe80::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
def test_inner_addresses_in_urls_however_they_are_spelt(host: str) -> None:
    """Refused before anything is looked up; what httpx takes for no URL at all is refused by it."""
    for url in (f"http://{host}/a.png", f"https://{host}:443/a.png"):
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL:
            continue
        assert not OPEN.check_url(parsed)


def test_public_addresses_in_urls() -> None:
    for host in ("8.8.8.8", "[2606:4700:4700::1111]", "1.1.1.1.", "8.8.8.8.example.com", "0x.example", "1.example"):
        assert may_look_up(OPEN, f"http://{host}/a.png")


def test_allowed_domains() -> None:
    guard = Guard((), ("Pictures.Example", "*.cdn.example", "8.8.8.8"), PORTS)
    for host in (
        "pictures.example",
        "PICTURES.example",
        "pictures.example.",
        "a.cdn.example",
        "a.b.cdn.example",
        "8.8.8.8",
    ):
        assert may_look_up(guard, f"http://{host}/a.png")
    for host in (
        "example",
        "other.example",
        "a.pictures.example",
        "cdn.example",
        "evilcdn.example",
        "pictures.example.evil.example",
        "evilpictures.example",
        "9.9.9.9",
        "[2606:4700:4700::1111]",
    ):
        assert not may_look_up(guard, f"http://{host}/a.png")


def test_an_allowed_domain_does_not_open_inner_addresses() -> None:
    guard = Guard((), ("127.0.0.1", "localhost"), PORTS)
    assert not may_look_up(guard, "http://127.0.0.1/a.png")
    assert not guard.check_address("127.0.0.1")
