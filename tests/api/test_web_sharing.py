"""Many who want images at once: what is the same is fetched and decoded once, and nobody takes all the places."""

import asyncio
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_api.errors import ApiError, BadImage
from llava_api.images import decode
from llava_api.images.fetch import Fetcher, Resolve
from llava_api.settings import Settings
from tests.api.test_chat import CHAT, image_message
from tests.api.test_errors import error_of
from tests.support.host_behaviours import PNG
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until
from tests.support.web import PATIENT_SECONDS, TIMEOUT_SECONDS, Web, fetch, refusal


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings()


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


def asks_for(*urls: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [image_message("Colour?", *urls)]}


async def test_the_same_image_is_fetched_once_for_all_who_want_it_now(web: Web, fetcher: Fetcher) -> None:
    url = web.host.url("/good/in-pieces")
    files = await asyncio.gather(*(fetch(fetcher, url, caller=f"caller {number}") for number in range(20)))
    assert set(files) == {PNG}
    assert web.host.count()["/good/in-pieces"] == 1
    # Later it is looked at again: it may have changed.
    await fetch(fetcher, url)
    assert web.host.count()["/good/in-pieces"] == 2


async def test_a_part_of_the_url_that_no_host_sees_makes_no_difference(web: Web, fetcher: Fetcher) -> None:
    urls = [web.host.url("/good/in-pieces") + suffix for suffix in ("", "#a", "#b")]
    assert set(await asyncio.gather(*(fetch(fetcher, url) for url in urls))) == {PNG}
    assert web.host.connections == 1


async def test_a_failure_is_shared_and_names_each_ones_own_part(web: Web, fetcher: Fetcher) -> None:
    url = web.host.url("/status/404")
    ends = await asyncio.gather(
        *(fetcher.fetch(url, f"messages[{number}]", "somebody", 1000) for number in range(5)), return_exceptions=True
    )
    assert [end.param for end in ends if isinstance(end, BadImage)] == [f"messages[{number}]" for number in range(5)]
    assert web.host.count()["/status/404"] == 1


async def test_who_leaves_does_not_spoil_it_for_the_others(web: Web, fetcher: Fetcher) -> None:
    url = web.host.url("/good/in-pieces")
    first, second, third = (asyncio.ensure_future(fetch(fetcher, url)) for _ in range(3))
    await until(lambda: web.host.requests)
    first.cancel()
    third.cancel()
    assert await second == PNG
    await asyncio.gather(first, third, return_exceptions=True)
    assert first.cancelled()
    assert web.host.count()["/good/in-pieces"] == 1


async def test_when_all_have_left_the_host_is_hung_up_on(web: Web, fetcher: Fetcher) -> None:
    waiting = [asyncio.ensure_future(fetch(fetcher, web.host.url("/hang"))) for _ in range(3)]
    await until(lambda: web.host.requests)
    before = time.perf_counter()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await web.settle()
    assert web.host.open_connections == 0
    # Before the deadline would hang up.
    assert time.perf_counter() - before < PATIENT_SECONDS / 2
    assert await fetch(fetcher, web.host.url("/good.png")) == PNG


async def test_fetches_at_once_in_the_server(web: Web) -> None:
    async with web.fetcher(max_image_fetches=3) as fetcher:
        urls = [web.host.url(f"/good/in-pieces?{number}") for number in range(12)]
        files = await asyncio.gather(*(fetch(fetcher, url, caller=url) for url in urls))
    assert set(files) == {PNG}
    assert web.host.most_open <= 3


async def test_fetches_at_once_for_one_caller(web: Web) -> None:
    async with web.fetcher(max_image_fetches_per_caller=2) as fetcher:
        urls = [web.host.url(f"/good/in-pieces?{number}") for number in range(6)]
        files = await asyncio.gather(*(fetch(fetcher, url, caller="one") for url in urls))
        assert set(files) == {PNG}
        assert web.host.most_open <= 2
        await asyncio.gather(*(fetch(fetcher, url, caller=url) for url in urls))
        assert web.host.most_open > 2


async def test_a_caller_whose_hosts_hang_does_not_hold_up_another(web: Web) -> None:
    deadline = 3 * TIMEOUT_SECONDS
    limits = {"max_image_fetches": 4, "max_image_fetches_per_caller": 2, "image_fetch_timeout_seconds": deadline}
    async with web.fetcher(**limits) as fetcher:
        hanging = [
            asyncio.ensure_future(fetch(fetcher, web.host.url(f"/hang?{number}"), caller="slow")) for number in range(9)
        ]
        await until(lambda: web.host.open_connections == 2)
        before = time.perf_counter()
        assert await fetch(fetcher, web.host.url("/good.png"), caller="quick") == PNG
        assert not any(task.done() for task in hanging)
        assert web.host.most_open <= 3
        ends = await asyncio.gather(*hanging, return_exceptions=True)
        # Those that got no place are told to come back; nobody waits beyond the deadline.
        assert all(isinstance(end, ApiError) and end.status in (400, 503) for end in ends)
        assert time.perf_counter() - before < 10 * deadline
        assert await fetch(fetcher, web.host.url("/good.png"), caller="slow") == PNG


async def test_a_caller_whose_names_take_long_to_look_up_does_not_hold_up_another(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up cannot be broken off, so the threads of one that was given up stay taken; not everybody's, though."""
    done = threading.Event()

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host.startswith("slow"):
            done.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    limits = {"max_image_fetches": 6, "max_image_fetches_per_caller": 2, "image_fetch_timeout_seconds": 0.3}
    fetcher = Fetcher(Settings.model_validate(web.settings(**limits)))
    try:
        for turn in range(4):
            urls = [web.host.url("/good.png", f"slow-{turn}-{number}.test") for number in range(2)]
            await asyncio.gather(*(fetch(fetcher, url, caller="slow") for url in urls), return_exceptions=True)
        fetcher.settings.image_fetch_timeout_seconds = PATIENT_SECONDS
        assert await fetch(fetcher, web.host.url("/good.png"), caller="quick") == PNG
    finally:
        done.set()
        fetcher.close()


async def test_a_failure_gives_its_place_back(web: Web) -> None:
    async with web.fetcher(max_image_fetches=1, max_image_fetches_per_caller=1) as fetcher:
        for path in ("/status/404", "/garbage", "/endless/body", "/redirect/loop", "/redirect/file", "/reset/in-body"):
            await refusal(fetcher, web.host.url(path))
            assert await fetch(fetcher, web.host.url("/good.png")) == PNG


async def test_the_same_image_of_many_requests_is_fetched_and_decoded_once(
    web: Web, client: httpx.AsyncClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0
    original = decode.decode

    def counting(*arguments: Any, **more: Any) -> Any:
        nonlocal decoded
        decoded += 1
        time.sleep(0.1)
        return original(*arguments, **more)

    monkeypatch.setattr(decode, "decode", counting)
    body = asks_for(web.host.url("/good/in-pieces"))
    replies = await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(20)))
    assert [reply.status_code for reply in replies] == [200] * 20
    assert web.host.count()["/good/in-pieces"] == 1
    assert decoded == 1
    assert len({request.images[0].cache_key for request in engine.requests}) == 1
    # Another address, the same file: fetched, and known when it is there.
    assert (await client.post(CHAT, json=asks_for(web.host.url("/good.png")))).status_code == 200
    assert decoded == 1


async def test_one_bad_image_stops_the_fetches_of_its_request(web: Web, client: httpx.AsyncClient) -> None:
    urls = [web.host.url("/hang?1"), web.host.url("/status/404"), web.host.url("/hang?2")]
    before = time.perf_counter()
    reply = await client.post(CHAT, json=asks_for(*urls))
    assert (reply.status_code, error_of(reply)["param"]) == (400, "messages[0].content[1].image_url")
    assert time.perf_counter() - before < PATIENT_SECONDS / 2
    await web.settle()
    assert web.host.open_connections == 0


async def test_too_many_images_are_refused_before_any_is_fetched(web: Web, client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=asks_for(*(web.host.url(f"/good.png?{number}") for number in range(65))))
    assert (reply.status_code, error_of(reply)["param"]) == (400, "messages")
    assert web.host.connections == 0


async def test_a_text_that_cannot_fit_is_refused_before_any_image_is_fetched(
    web: Web, client: httpx.AsyncClient, app: FastAPI
) -> None:
    message = image_message("word " * 50_000, web.host.url("/good.png"))
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [message]})
    assert (reply.status_code, error_of(reply)["code"]) == (400, "context_length_exceeded")
    assert web.host.connections == 0
