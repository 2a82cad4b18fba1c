"""The corpus of bad images through the real app: each refused in one useful sentence, and the server goes on."""

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_chat import CHAT, RED, image_message
from tests.api.test_errors import error_of
from tests.support.bad_images import BadPicture, corpus

CORPUS = corpus()
SECONDS = 10
"""What one image may take, at most."""
INNER = re.compile(
    r"<|>|0x[0-9a-f]|\bobject\b|Traceback|_io|BytesIO|Error|Exception|PIL|Pillow|llava_api|site-packages|\bNone\b"
    r"|(?<![\w.])/\w|\\|\b(?:127|10|192|169)\.\d+\.\d+\.\d+"
)
"""What gives away the inside: objects, addresses, modules, paths."""
USEFUL = re.compile(r"\b(send|scale|crop|save|encode|name|give|use|check|try)\b", re.IGNORECASE)
"""Every refusal says what to do."""


@pytest.fixture
def settings_made() -> dict[str, Any]:
    """The limits that the server has by default, images and bodies of megabytes among them."""
    return {"max_body_bytes": 100_000_000, "max_image_bytes": 20_000_000, "max_image_pixels": 64_000_000}


def body_with(data: bytes) -> dict[str, Any]:
    bad = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    messages = [
        {"role": "system", "content": "Be brief."},
        image_message("First?", RED),
        {"role": "assistant", "content": "Red."},
        image_message("And these?", RED, bad),
    ]
    return {"model": "tiny", "messages": messages}


PARAM = "messages[3].content[1].image_url"


def complaint_about(image: BadPicture, reply: httpx.Response) -> str | None:
    """What is wrong with an answer; None where it is as it should be."""
    if reply.status_code == 200:
        return None if image.may_be_shown else "it was shown"
    if reply.status_code != 400:
        return f"status {reply.status_code}: {reply.text[:200]}"
    error = error_of(reply)
    message = error["message"]
    if error["param"] != PARAM:
        return f"param {error['param']}"
    if error["type"] != "invalid_request_error" or not error["code"]:
        return f"type {error['type']}, code {error['code']}"
    if INNER.search(message):
        return f"it gives something away: {message}"
    if not (message.endswith(".") and USEFUL.search(message) and 30 < len(message) < 300):
        return f"not a useful sentence: {message}"
    if image.kind is not None and image.kind.lower() not in message.lower():
        return f"{image.kind} is not named: {message}"
    return None


@contextmanager
def longest_block(clock: Callable[[], float] = time.perf_counter) -> Iterator[list[float]]:
    """How long the event loop stood still, at most: the one entry of the list, in seconds.

    With ``time.thread_time``: how long it computed without a pause, which other programs' load does not change.
    """
    longest = [0.0]

    async def tick() -> None:
        while True:
            before = clock()
            await asyncio.sleep(0.01)
            longest[0] = max(longest[0], clock() - before)

    ticking = asyncio.ensure_future(tick())
    try:
        yield longest
    finally:
        ticking.cancel()


async def ask(client: httpx.AsyncClient, image: BadPicture) -> str | None:
    content = json.dumps(body_with(image.data)).encode()
    with longest_block() as longest:
        before = time.perf_counter()
        reply = await client.post(CHAT, content=content, timeout=120)
        seconds = time.perf_counter() - before
        # Whoever is next is served, and at once: no thread is held by what was refused.
        good = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("Colour?", RED)]})
        good_seconds = time.perf_counter() - before - seconds
    complaint = complaint_about(image, reply)
    if complaint is None and seconds > SECONDS:
        complaint = f"it took {seconds:.1f} seconds"
    if complaint is None and longest[0] > 2:
        complaint = f"the event loop stood still for {longest[0]:.1f} seconds"
    if good.status_code != 200 or good_seconds > SECONDS:
        complaint = f"the next request: status {good.status_code}, {good_seconds:.1f} seconds"
    return complaint and f"{image.name}: {complaint}"


@pytest.mark.parametrize("group", [group for group in CORPUS if group != "slow to read"])
async def test_bad_images(client: httpx.AsyncClient, group: str) -> None:
    complaints = [await ask(client, image) for image in CORPUS[group]]
    assert [complaint for complaint in complaints if complaint is not None] == []


@pytest.mark.parametrize("image", CORPUS["slow to read"], ids=[image.name for image in CORPUS["slow to read"]])
async def test_images_that_are_slow_to_read(client: httpx.AsyncClient, image: BadPicture) -> None:
    assert await ask(client, image) is None


async def test_a_postscript_file_starts_nothing(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gs", "gswin32c", "gswin64c"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (image,) = (image for image in CORPUS["other kinds"] if image.name == "eps")
    assert await ask(client, image) is None
    assert not (tmp_path / "started").exists()


async def test_the_kind_is_told_by_the_bytes_and_not_by_the_url(client: httpx.AsyncClient) -> None:
    encoded = RED.split(",", 1)[1]
    for kind in ("image/svg+xml", "application/pdf", "text/html", "image/jpeg", ""):
        message = image_message("Colour?", f"data:{kind};base64,{encoded}")
        reply = await client.post(CHAT, json={"model": "tiny", "messages": [message]})
        assert reply.status_code == 200, kind


async def test_many_bad_images_at_once(client: httpx.AsyncClient) -> None:
    """Refused side by side, each with its own answer."""
    images = [image for group in ("truncated", "other kinds", "too large") for image in CORPUS[group]]
    replies = await asyncio.gather(*(client.post(CHAT, json=body_with(image.data)) for image in images))
    complaints = map(complaint_about, images, replies)
    assert [complaint for complaint in complaints if complaint is not None] == []
