"""Bodies and files that are small to send and would be dear to take: refused at once, and named rightly."""

import base64
import io
import struct
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.questions import data_url

CHAT = "/v1/chat/completions"
RED = data_url(Image.new("RGB", (60, 40), "red"))
TEXT = {"type": "text", "text": "What is it?"}


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"max_body_bytes": 30_000_000, "max_image_bytes": 20_000_000}


async def refused(client: httpx.AsyncClient, messages: object) -> dict[str, Any]:
    reply = await client.post(CHAT, json={"model": "tiny", "messages": messages})
    assert reply.status_code == 400
    good = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
    assert (await client.post(CHAT, json=good)).status_code == 200
    error: dict[str, Any] = reply.json()["error"]
    return error


@pytest.mark.parametrize(
    "messages",
    [
        [1] * 2_000_000,
        [{"role": "user", "content": "a"}] * 50_000,
        [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}],
        [[]] * 1_000_000,
    ],
    ids=["numbers", "messages", "parts", "lists"],
)
async def test_too_many_parts(client: httpx.AsyncClient, messages: object) -> None:
    assert "too many parts" in (await refused(client, messages))["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a" * 9_000_000},
        {"role": "user", "content": "é" * 5_000_000},
        {"role": "user", "a" * 9_000_000: 1},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": RED}}, {"a" * 9_000_000: 1}]},
    ],
    ids=["letters", "letters beyond ASCII", "a field's name", "behind a picture"],
)
async def test_too_much_besides_images(client: httpx.AsyncClient, message: object) -> None:
    assert "besides its images" in (await refused(client, [message]))["message"]


async def test_too_many_parts_of_one_message(client: httpx.AsyncClient) -> None:
    error = await refused(client, [{"role": "user", "content": [1] * 3000}])
    assert error["param"] == "messages[0].content"
    assert "2000 parts" in error["message"]


async def test_thousands_of_messages_in_a_row_are_one_turn(client: httpx.AsyncClient) -> None:
    error = await refused(client, [{"role": "user", "content": "word"}] * 15_000)
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text", "text": 5}, "text"),
        ({**TEXT, "image": RED}, "image"),
        ({"type": "image_url", "image_url": {"url": RED, "detail": "huge"}}, "image_url.detail"),
        ({"type": "image_url", "image_url": {"url": 5}}, "image_url.url"),
    ],
)
async def test_the_field_that_is_wrong_is_the_one_that_is_named(
    client: httpx.AsyncClient, part: dict[str, Any], param: str
) -> None:
    error = await refused(client, [{"role": "user", "content": [TEXT, part]}])
    assert error["param"] == f"messages[0].content[1].{param}"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, colour_type: int = 2) -> bytes:
    """A PNG of 2x2, with ``chunks`` before its pixels."""
    row = b"\0" + bytes(6 if colour_type == 2 else 2)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6)))


async def test_a_palette_image_without_a_palette(client: httpx.AsyncClient) -> None:
    file = png_with(colour_type=3)
    part = {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(file).decode()}}
    error = await refused(client, [{"role": "user", "content": [part, TEXT]}])
    assert error["param"] == "messages[0].content[0].image_url"


async def test_packed_profiles_are_not_unpacked(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "decompressobj", None)
    file = png_with(*[PROFILE] * 2000)
    part = {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(file).decode()}}
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [{"role": "user", "content": [part, TEXT]}]})
    assert reply.status_code == 200


async def test_one_profile_is_no_harm(client: httpx.AsyncClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG", icc_profile=bytes(3000))
    part = {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(buffer.getvalue()).decode()}}
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [{"role": "user", "content": [part, TEXT]}]})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "text", ["A " * 5_000_000, "%41" * 3_000_000, "%é" * 2_000_000], ids=["spaces", "escapes", "letters"]
)
async def test_base64_that_is_no_base64(client: httpx.AsyncClient, text: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + text}}
    error = await refused(client, [{"role": "user", "content": [part, TEXT]}])
    assert error["param"] == "messages[0].content[0].image_url"
