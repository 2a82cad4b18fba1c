"""Where the fetcher goes and where it does not: spellings, names, redirects, proxies, TLS."""

import asyncio
from pathlib import Path

import pytest

from llava_api.images.fetch import Fetcher
from tests.support.host_behaviours import PNG
from tests.support.image_host import ImageHost
from tests.support.web import TIMEOUT_SECONDS, Web, certificate_for, fetch, refusal, small_web

INNER_HOSTS = [
    "127.0.0.2",
    "127.2",
    "127.0.2",
    "2130706434",
    "0x7f000002",
    "0x7f.0.0.2",
    "0x7f.0x0.0x0.0x2",
    "0177.0.0.2",
    "017700000002",
    "0177.0.2",
    "127.0.0.2.",
    "0.0.0.0",
    "0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "0xa9fea9fe",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "\uff11\uff12\uff17.0.0.2",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.2]",
    "[::ffff:7f00:2]",
    "[::127.0.0.2]",
    "[::ffff:0:127.0.0.2]",
    "[64:ff9b::127.0.0.2]",
    "[64:ff9b:1::127.0.0.2]",
    "[2002:7f00:2::]",
    "[2001:0:7f00:2::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fec0::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[100::1]",
    "[2001:db8::1]",
    "[v1.127.0.0.2]",
]


async def test_inner_addresses_are_not_dialled_however_they_are_spelt(web: Web, fetcher: Fetcher) -> None:
    for host in INNER_HOSTS:
        for path in ("/good.png", ""):
            error = await refusal(fetcher, web.host.url(path, host))
            assert error.code == "image_url_not_allowed", host
    assert web.names.asked.total() == 0
    assert web.inner.connections == web.host.connections == 0


async def test_urls_of_other_shapes(web: Web, fetcher: Fetcher) -> None:
    port = web.host.port
    for url in (
        f"http://user@pictures.test:{port}/good.png",
        f"http://user:word@pictures.test:{port}/good.png",
        f"http://@pictures.test:{port}@inner.test:{port}/good.png",
        f"http://inner.test:{port}\\@pictures.test:{port}/good.png",
        f"http://pictures.test:{port}#@inner.test:{port}/good.png",
        "http://pictures.test/good.png",
        "http://pictures.test:80/good.png",
        "http://pictures.test:22/good.png",
        f"http://pictures.test:{port + 65536}/good.png",
        "http://pictures.test:-1/good.png",
        "http://pictures.test:port/good.png",
        "http://",
        "http:///good.png",
        "http://[::1/good.png",
        f"http://pictures .test:{port}/good.png",
        f"http://pictures.test\r\n.evil.test:{port}/good.png",
        f"http://pictures.test:{port}/good.png\r\nX-Evil: 1",
        f"http://pictures.test:{port}/\0good.png",
        f"http://{'a' * 70}.test:{port}/good.png",
        f"http://xn--a.test:{port}/good.png",
        f"http://pictures..test:{port}/good.png",
        f"http://pictures.test:{port}/{'a' * 100_000}",
    ):
        assert (await refusal(fetcher, url)).code in ("image_url_not_allowed", "image_fetch_failed"), url
    assert web.inner.connections == 0
    assert all("x-evil" not in request.headers for request in web.host.requests)


async def test_unusual_urls_that_are_fine(web: Web, fetcher: Fetcher) -> None:
    port = web.host.port
    for url in (
        f"HTTP://PICTURES.TEST:{port}/good.png",
        f"http://pictures.test.:{port}/good.png",
        f"http://pictures.test:{port}/a/../good.png",
        f"http://pictures.test:{port}/good.png?name=äöü 1",
        f"http://127.0.0.1:{port}/good.png",
    ):
        web.names.answers["pictures.test."] = [["127.0.0.1"]]
        assert await fetch(fetcher, url) == PNG, url


async def test_names_of_inner_addresses_are_not_told_from_names_that_do_not_exist(web: Web, fetcher: Fetcher) -> None:
    """Else a stranger could ask which names there are inside."""
    web.names.rebind("both.test", ["127.0.0.1", "127.0.0.2"])
    web.names.rebind("both-reversed.test", ["127.0.0.2", "127.0.0.1"])
    web.names.rebind("mapped.test", ["::ffff:127.0.0.2"])
    web.names.rebind("private.test", ["10.0.0.1"])
    web.names.rebind("six.test", ["fe80::1%lo"])
    web.names.rebind("nothing.test", [])
    web.names.rebind("broken.test", ["not an address"])
    hosts = (
        "missing.test",
        "inner.test",
        *(host for host in web.names.answers if host not in ("pictures.test", "other.test")),
    )
    errors = [await refusal(fetcher, web.host.url("/good.png", host)) for host in hosts]
    assert {error.code for error in errors} == {"image_fetch_failed"}
    assert len({error.message for error in errors}) == 1
    assert web.inner.connections == web.host.connections == 0


async def test_a_name_that_changes_its_mind(web: Web, fetcher: Fetcher) -> None:
    """What was judged is what is dialled: asked once for a connection, and the next time judged anew."""
    for hop in ("/good/no-length", "/redirect/absolute"):
        web.names.rebind("rebinding.test", ["127.0.0.1"], ["127.0.0.2"])
        web.names.asked.clear()
        assert await fetch(fetcher, web.host.url(hop, "rebinding.test")) == PNG
        assert web.names.asked["rebinding.test"] == 1
        assert (
            await refusal(fetcher, web.host.url("/good/no-length?again", "rebinding.test"))
        ).code == "image_fetch_failed"
    assert web.inner.connections == 0
    assert {request.headers["host"].split(":")[0] for request in web.host.requests} == {
        "rebinding.test",
        "pictures.test",
    }


async def test_a_name_that_changes_its_mind_between_redirects(web: Web, fetcher: Fetcher) -> None:
    web.names.rebind("rebinding.test", ["127.0.0.1"], ["127.0.0.2"])
    web.host.elsewhere = web.host.url("/good.png", "rebinding.test")
    web.names.rebind("pictures.test", ["127.0.0.1"])
    assert await fetch(fetcher, web.host.url("/good/no-length", "rebinding.test")) == PNG
    assert (await refusal(fetcher, web.host.url("/redirect/elsewhere"))).code == "image_fetch_failed"
    assert web.inner.connections == 0


async def test_a_name_of_several_good_addresses(web: Web) -> None:
    web.names.rebind("several.test", ["127.0.0.9", "127.0.0.1"])
    async with web.fetcher(allowed_media_cidrs=["127.0.0.1/32", "127.0.0.9/32"]) as fetcher:
        assert await fetch(fetcher, web.host.url("/good.png", "several.test")) == PNG


async def test_nothing_inner_without_the_operators_word(web: Web) -> None:
    async with web.fetcher(allowed_media_cidrs=[]) as fetcher:
        for host in ("pictures.test", "inner.test", "127.0.0.1", "localhost"):
            await refusal(fetcher, web.host.url("/good.png", host))
    async with web.fetcher(allowed_media_ports=[80, 443]) as fetcher:
        assert (await refusal(fetcher, web.host.url("/good.png"))).code == "image_url_not_allowed"
    async with web.fetcher(fetch_images=False) as fetcher:
        assert (await refusal(fetcher, web.host.url("/good.png"))).code == "image_url_not_allowed"
    assert web.host.connections == web.inner.connections == 0


async def test_networks_that_the_operator_names(web: Web) -> None:
    async with web.fetcher(allowed_media_cidrs=["127.0.0.0/30"]) as fetcher:
        assert await fetch(fetcher, web.host.url("/good.png", "inner.test")) == PNG
        assert await fetch(fetcher, web.host.url("/good.png", "127.0.0.2")) == PNG
        assert await fetch(fetcher, web.host.url("/redirect/inner")) == PNG


async def test_only_the_domains_that_the_operator_names(web: Web) -> None:
    web.names.rebind("a.cdn.test", ["127.0.0.1"])
    web.names.rebind("inner.cdn.test", ["127.0.0.2"])
    async with web.fetcher(allowed_media_domains=["Pictures.test", "*.cdn.test"]) as fetcher:
        for host in ("pictures.test", "PICTURES.TEST", "a.cdn.test"):
            assert await fetch(fetcher, web.host.url("/good.png", host)) == PNG
        for host in ("other.test", "127.0.0.1", "cdn.test", "evilcdn.test", "pictures.test.evil.test"):
            assert (await refusal(fetcher, web.host.url("/good.png", host))).code == "image_url_not_allowed", host
        # The operator trusts the domain with what it shows, not with inner addresses.
        assert (await refusal(fetcher, web.host.url("/good.png", "inner.cdn.test"))).code == "image_fetch_failed"
        web.host.elsewhere = web.host.url("/good.png", "other.test")
        assert (await refusal(fetcher, web.host.url("/redirect/elsewhere"))).code == "image_url_not_allowed"
    assert web.names.asked["other.test"] == 0
    assert web.inner.connections == 0


async def test_proxies_of_the_environment_are_ignored(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ImageHost() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with web.fetcher() as fetcher:
            assert await fetch(fetcher, web.host.url("/good.png")) == PNG
            await refusal(fetcher, web.host.url("/good.png").replace("http:", "https:"))
        assert proxy.connections == 0


async def test_https(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, certificate = certificate_for("pictures.test", tmp_path)
    async with small_web(tls) as safe:
        ports = {"allowed_media_ports": [safe.host.port, web.host.port]}
        async with safe.fetcher(**ports) as fetcher:
            # Nobody vouches for the certificate.
            assert (await refusal(fetcher, safe.host.url("/good.png"))).code == "image_fetch_failed"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with safe.fetcher(**ports) as fetcher:
            assert await fetch(fetcher, safe.host.url("/good.png")) == PNG
            assert await fetch(fetcher, safe.host.url("/redirect/relative")) == PNG
            # The certificate is another name's.
            assert (await refusal(fetcher, safe.host.url("/good.png", "other.test"))).code == "image_fetch_failed"
            assert (await refusal(fetcher, safe.host.url("/good.png", "127.0.0.1"))).code == "image_fetch_failed"
            # From https to http: never, and from http to https always.
            safe.host.elsewhere = web.host.url("/good.png")
            assert (await refusal(fetcher, safe.host.url("/redirect/elsewhere"))).code == "image_url_not_allowed"
            assert web.host.connections == 0
            web.host.elsewhere = safe.host.url("/good.png")
            assert await fetch(fetcher, web.host.url("/redirect/elsewhere")) == PNG
            # Each speaks what the other does not.
            for url in (
                safe.host.url("/good.png").replace("https:", "http:"),
                web.host.url("/a").replace("http:", "https:"),
            ):
                assert (await refusal(fetcher, url)).code == "image_fetch_failed"


async def test_a_handshake_that_hangs(web: Web) -> None:
    """Given up at the deadline, and hung up too: else such a host could take all of the server's sockets."""
    hung_up = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limits = {"allowed_media_ports": [port], "image_fetch_timeout_seconds": TIMEOUT_SECONDS}
    async with server, web.fetcher(**limits) as fetcher:
        assert (await refusal(fetcher, f"https://pictures.test:{port}/a.png")).code == "image_fetch_failed"
        await asyncio.wait_for(hung_up.wait(), 20)
