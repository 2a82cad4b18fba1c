"""Images from the web: what good hosts send arrives, whatever bad ones do ends in time, in a useful sentence."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from llava_api.errors import BadImage
from llava_api.images.fetch import Fetcher, Resolve
from tests.api.test_bad_images import longest_block
from tests.api.test_chat import CHAT, image_message, text_body
from tests.api.test_errors import error_of
from tests.support.host_behaviours import (
    BROKEN,
    ENDLESS,
    FORBIDDEN,
    GOOD,
    HANGING,
    JPEG,
    NO_IMAGE,
    PNG,
    REFUSED_LATER,
)
from tests.support.image_host import full_backlog
from tests.support.web import MAX_BYTES, PATIENT_SECONDS, TIMEOUT_SECONDS, Web, check_words, fetch, refusal

SOON_SECONDS = 20.0
"""Long after the deadline on a busy machine, and long before a host that hangs or goes on would end by itself."""


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings(max_image_bytes=MAX_BYTES, max_image_fetches_per_caller=32)


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


async def test_good_hosts(web: Web, fetcher: Fetcher) -> None:
    for path in GOOD:
        assert await fetch(fetcher, web.host.url(path)) == (JPEG if path.endswith("jpg") else PNG), path


async def test_what_is_sent_tells_nothing_about_anybody(web: Web, fetcher: Fetcher) -> None:
    await fetch(fetcher, web.host.url("/good.png?a=1#part"))
    await fetch(fetcher, web.host.url("/redirect/relative"))
    assert [request.path for request in web.host.requests] == ["/good.png?a=1", "/redirect/relative", "/good.png"]
    for request in web.host.requests:
        assert request.headers["host"] == f"pictures.test:{web.host.port}"
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers.keys() <= {"host", "accept", "accept-encoding", "user-agent", "connection"}


async def test_cookies_are_never_sent(web: Web, fetcher: Fetcher) -> None:
    for path in ("/good/cookie", "/redirect/cookie", "/good.png", "/redirect/cookie"):
        assert await fetch(fetcher, web.host.url(path)) == PNG
    assert all("cookie" not in request.headers for request in web.host.requests)


async def test_hosts_that_hang_are_given_up(web: Web, fetcher: Fetcher) -> None:
    async def timed(path: str) -> tuple[BadImage, float]:
        before = time.perf_counter()
        return await refusal(hasty, web.host.url(path), caller=path), time.perf_counter() - before

    async with web.fetcher(image_fetch_timeout_seconds=TIMEOUT_SECONDS) as hasty:
        with longest_block(time.thread_time) as longest:
            ends = dict(zip(HANGING, await asyncio.gather(*map(timed, HANGING)), strict=True))
    for path, (error, seconds) in ends.items():
        assert error.code == "image_fetch_failed", path
        if path == "/endless/early-hints":
            # Cut for their sheer number, sooner than for their time.
            continue
        assert f"{TIMEOUT_SECONDS:g} seconds" in error.message, path
        assert TIMEOUT_SECONDS - 0.1 < seconds < SOON_SECONDS, path
    assert longest[0] < 0.5
    await web.settle()
    assert web.host.open_connections == 0
    assert await fetch(fetcher, web.host.url("/good.png")) == PNG


async def test_a_host_that_cannot_be_connected_to(web: Web) -> None:
    with full_backlog() as port:
        ports = {"allowed_media_ports": [port, web.host.port]}
        async with web.fetcher(image_fetch_timeout_seconds=TIMEOUT_SECONDS, **ports) as hasty:
            before = time.perf_counter()
            assert (await refusal(hasty, f"http://pictures.test:{port}/a.png")).code == "image_fetch_failed"
            assert time.perf_counter() - before < SOON_SECONDS
        async with web.fetcher(**ports) as fetcher:
            assert await fetch(fetcher, web.host.url("/good.png")) == PNG
    async with web.fetcher(**ports) as fetcher:
        assert (await refusal(fetcher, f"http://pictures.test:{port}/a.png")).code == "image_fetch_failed"


async def test_a_look_up_that_hangs(web: Web, fetcher: Fetcher) -> None:
    web.names.pause_seconds = 3600
    async with web.fetcher(image_fetch_timeout_seconds=TIMEOUT_SECONDS) as hasty:
        before = time.perf_counter()
        assert (await refusal(hasty, web.host.url("/good.png"))).code == "image_fetch_failed"
        assert time.perf_counter() - before < SOON_SECONDS
    web.names.pause_seconds = 0
    assert await fetch(fetcher, web.host.url("/good.png")) == PNG


@pytest.mark.parametrize("path", ENDLESS)
async def test_endless_bodies_are_cut_at_the_limit(web: Web, path: str) -> None:
    async with web.fetcher() as fetcher:
        before = time.perf_counter()
        with longest_block(time.thread_time) as longest:
            error = await refusal(fetcher, web.host.url(path))
        if "tiny" in path:
            # Crumbs are refused before they make up too large an image.
            assert "very small parts" in error.message
        else:
            assert error.code == "image_too_large"
            assert f"{MAX_BYTES} bytes" in error.message
        assert time.perf_counter() - before < SOON_SECONDS
        assert longest[0] < 1
        await web.settle()
        assert web.host.open_connections == 0
        # The rest lies in the sockets' buffers.
        assert web.host.bytes_sent < 20_000_000
        assert await fetch(fetcher, web.host.url("/good.png")) == PNG


async def test_tiny_chunks_do_not_hold_up_everybody_else(web: Web) -> None:
    """Each chunk of one byte costs as much as a large one; while they come, others must be served."""
    async with web.fetcher() as fetcher:
        with longest_block(time.thread_time) as longest:
            await asyncio.gather(
                *(refusal(fetcher, web.host.url(f"/endless/tiny-chunks?{n}"), max_bytes=20_000_000) for n in range(4))
            )
    assert longest[0] < 0.5


async def test_the_limit_itself_is_allowed(web: Web, fetcher: Fetcher) -> None:
    for path in ("/good.png", "/good/no-length", "/good/chunked"):
        assert await fetch(fetcher, web.host.url(path), max_bytes=len(PNG)) == PNG
        assert (await refusal(fetcher, web.host.url(path), max_bytes=len(PNG) - 1)).code == "image_too_large"


@pytest.mark.parametrize("path", BROKEN)
async def test_broken_answers(web: Web, fetcher: Fetcher, path: str) -> None:
    assert (await refusal(fetcher, web.host.url(path))).code == "image_fetch_failed"
    await web.settle()
    assert web.host.open_connections == 0
    assert web.host.bytes_sent < 20_000_000
    assert await fetch(fetcher, web.host.url("/good.png")) == PNG


@pytest.mark.parametrize("path", NO_IMAGE)
async def test_answers_without_an_image(web: Web, fetcher: Fetcher, path: str) -> None:
    error = await refusal(fetcher, web.host.url(path))
    assert error.code == "image_fetch_failed"
    if path.startswith("/status/"):
        assert path[8:11] in error.message
    if path.startswith("/type/"):
        assert path[6:].lower() in error.message.lower()
    assert await fetch(fetcher, web.host.url("/good.png")) == PNG


async def test_the_rest_of_a_redirect_or_an_error_is_not_waited_for(web: Web, fetcher: Fetcher) -> None:
    before = time.perf_counter()
    await refusal(fetcher, web.host.url("/status/404-endless"))
    assert time.perf_counter() - before < SOON_SECONDS


async def test_redirects_to_where_nobody_may_go(web: Web, fetcher: Fetcher) -> None:
    for path in FORBIDDEN:
        error = await refusal(fetcher, web.host.url(path))
        assert error.code in ("image_url_not_allowed", "image_fetch_failed"), path
    assert web.inner.connections == 0
    assert await fetch(fetcher, web.host.url("/good.png")) == PNG


OTHERS = [*ENDLESS, *BROKEN, *NO_IMAGE, *REFUSED_LATER, *FORBIDDEN]


async def test_every_bad_host_through_the_whole_server(
    web: Web, client: httpx.AsyncClient, fetcher: Fetcher, app: Any
) -> None:
    good = {"model": "tiny", "messages": [image_message("Colour?", web.host.url("/good.png"))]}
    settings = app.state.services.settings
    for paths in [HANGING, *(OTHERS[start : start + 8] for start in range(0, len(OTHERS), 8))]:
        # Long enough for the good host, which is asked at the same time.
        settings.image_fetch_timeout_seconds = 5 * TIMEOUT_SECONDS if paths is HANGING else PATIENT_SECONDS
        bodies = [
            {"model": "tiny", "messages": [image_message("Colour?", web.host.url("/good.jpg"), web.host.url(path))]}
            for path in paths
        ]
        before = time.perf_counter()
        replies = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
        assert time.perf_counter() - before < SOON_SECONDS
        for path, reply in zip(paths, replies, strict=True):
            assert reply.status_code == 400, (path, reply.text)
            error = error_of(reply)
            assert error["param"] == "messages[0].content[1].image_url", path
            assert error["code"] in (
                "image_fetch_failed",
                "image_too_large",
                "image_url_not_allowed",
                "invalid_image",
                "unsupported_image_format",
            ), path
            check_words(error["message"], fetcher)
        assert (await client.post(CHAT, json=good)).status_code == 200
    assert (await client.post(CHAT, json=text_body())).status_code == 200
    assert web.inner.connections == 0


async def test_the_bytes_of_a_whole_request_are_limited(
    web: Web, client: httpx.AsyncClient, settings_made: dict[str, Any], app: Any
) -> None:
    app.state.services.settings.max_request_image_bytes = 3 * len(PNG) - 1
    for count, status in ((1, 200), (2, 200), (3, 400)):
        urls = [web.host.url(f"/good.png?{number}") for number in range(count)]
        reply = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("Colour?", *urls)]})
        assert reply.status_code == status
    assert error_of(reply)["code"] == "image_too_large"
    assert str(3 * len(PNG) - 1) in error_of(reply)["message"]
