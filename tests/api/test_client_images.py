"""Image files as phones, cameras, scanners and programs make them: the model is shown what people see."""

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageDraw

from llava_api.errors import BadImage
from llava_api.images import isolated
from llava_api.images.decode import Limits, decode, read_header
from tests.api.test_chat import CHAT, image_message
from tests.api.test_errors import error_of
from tests.support.image_files import behind_start, encoded, jpeg_segment, noise, png_chunk
from tests.support.scripted_engine import ScriptedEngine

pillow_heif.register_heif_opener()
LIMITS = Limits(64_000_000, 16_384, 200)
Make = Callable[[], bytes]


@pytest.fixture
def settings_made() -> dict[str, Any]:
    return {"max_body_bytes": 100_000_000, "max_image_bytes": 20_000_000, "max_image_pixels": 64_000_000}


def circle(width: int = 240, height: int = 180) -> Image.Image:
    """A red circle in the upper left, on white."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((width * 0.1, height * 0.1, width * 0.4, height * 0.5), fill="red")
    return image


def png_with(*chunks: bytes) -> bytes:
    file = encoded(circle(), "PNG")
    return file[:33] + b"".join(chunks) + file[33:]


TEXT = b"workflow " * 170_000


def motion_photo(video: bytes, width: int = 240, height: int = 180) -> bytes:
    return encoded(circle(width, height), "JPEG", quality=95) + b"MotionPhoto_Data" + video


def mpo() -> bytes:
    return encoded(circle(), "MPO", save_all=True, append_images=[circle(60, 45)])


def with_thumbnail() -> bytes:
    """A JPEG in whose EXIF data are marks of scans and of an end."""
    return behind_start(
        encoded(circle(), "JPEG", quality=95), jpeg_segment(0xE1, b"Exif\0\0" + b"\xff\xda\xff\xd9" * 9000)
    )


def transparent(image_format: str) -> bytes:
    """The circle, with transparency and another colour in place of the white."""
    alpha = circle().getchannel("G").point(lambda level: 255 - level)
    image = Image.new("RGB", alpha.size, "red")
    image.putalpha(alpha)
    return encoded(image, image_format)


def turned(image_format: str, **options: Any) -> bytes:
    """Stored lying on its side, with the orientation that turns it upright."""
    return encoded(circle().transpose(Image.Transpose.ROTATE_90), image_format, **options)


def orientation_6() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def sixteen_bit_tiff() -> bytes:
    grey = np.asarray(circle().getchannel("G")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "TIFF")


FILES: dict[str, Make] = {
    "pic-motion-8MB": lambda: motion_photo(random.Random(7).randbytes(8_000_000), 4032, 3024),
    "a video that looks like scans": lambda: motion_photo(b"\xff\xda\0\x02" * 500_000),
    "an end mark in a thumbnail": with_thumbnail,
    "several images": mpo,
    "pic-no-eoi": lambda: encoded(circle(), "JPEG", quality=95)[:-2],
    "no end, upright": lambda: turned("JPEG", exif=orientation_6(), quality=95)[:-2],
    "pic-png-icc": lambda: png_with(png_chunk(b"iCCP", b"CMYK\0\0" + zlib.compress(TEXT))),
    "a profile that is damaged": lambda: png_with(png_chunk(b"iCCP", b"CMYK\0\0not packed")),
    "pic-png-ztxt": lambda: png_with(png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TEXT))),
    "an iTXt": lambda: png_with(png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(TEXT))),
    "a hundred zTXt": lambda: png_with(*[png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TEXT))] * 100),
    "large EXIF data": lambda: png_with(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(TEXT))),
    "AVIF": lambda: encoded(circle(), "AVIF", quality=95),
    "AVIF, transparent": lambda: transparent("AVIF"),
    "AVIF, turned": lambda: turned("AVIF", exif=orientation_6(), quality=95),
    "HEIC": lambda: encoded(circle(), "HEIF", quality=95),
    "HEIC, transparent": lambda: transparent("HEIF"),
    "TIFF": lambda: encoded(circle(), "TIFF"),
    "TIFF, LZW": lambda: encoded(circle(), "TIFF", compression="tiff_lzw"),
    "TIFF, JPEG": lambda: encoded(circle(), "TIFF", compression="jpeg", quality=95),
    "TIFF, palette": lambda: encoded(circle().convert("P"), "TIFF"),
    "TIFF, CMYK": lambda: encoded(circle().convert("CMYK"), "TIFF"),
    "TIFF, transparent": lambda: transparent("TIFF"),
    "TIFF, turned": lambda: turned("TIFF", tiffinfo={0x0112: 6}),
    "TIFF, two pages": lambda: encoded(circle(), "TIFF", save_all=True, append_images=[circle(30, 30)]),
    "JPEG 2000": lambda: encoded(circle(), "JPEG2000"),
    "JPEG 2000, transparent": lambda: transparent("JPEG2000"),
}
GREY: dict[str, Make] = {
    "TIFF, 16 bits": sixteen_bit_tiff,
    "TIFF, a fax": lambda: encoded(circle().getchannel("G").convert("1"), "TIFF", compression="group4"),
}


@pytest.mark.parametrize("name", [*FILES, *GREY])
def test_the_pixels_are_those_of_the_image(name: str) -> None:
    data = (FILES | GREY)[name]()
    header = read_header(data, LIMITS)
    image = decode(data, header.orientation, size=header.stored_size).image
    assert image.size == header.upright_size()
    width, height = image.size
    assert width * 3 == height * 4
    inside = np.array(image.getpixel((width // 4, height // 4)), dtype=int)
    outside = np.array([image.getpixel((width * 3 // 4, y)) for y in (height // 4, height - 5)], dtype=int)
    assert np.abs(inside - ((0, 0, 0) if name in GREY else (255, 0, 0))).max() <= 6
    assert np.abs(outside - 255).max() <= 6


@pytest.mark.parametrize(
    "name", ["pic-motion-8MB", "pic-no-eoi", "pic-png-icc", "pic-png-ztxt", "AVIF", "HEIC", "TIFF"]
)
async def test_the_server_shows_them(client: httpx.AsyncClient, engine: ScriptedEngine, name: str) -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(FILES[name]()).decode()}"
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("What?", url)]})
    assert reply.status_code == 200, reply.text
    (image,) = engine.requests[0].images
    levels = np.asarray(image.pixels)
    assert levels.min() < 20
    assert levels.max() > 250


def cut(image: Image.Image, bytes_left_out: int, **options: Any) -> bytes:
    return encoded(image, "JPEG", **options)[:-bytes_left_out]


def behind_last_scan(jpeg: bytes) -> bytes:
    """A progressive JPEG without its last scan."""
    return jpeg[: jpeg.rindex(b"\xff\xda")]


@pytest.mark.parametrize(
    "data",
    [
        *(cut(noise(200, 200), bytes_left_out) for bytes_left_out in (5, 50, 5000, 20_000)),
        cut(noise(200, 200), 2000, restart_marker_rows=1),
        cut(noise(40, 40), 2, progressive=True),
        behind_last_scan(encoded(noise(40, 40), "JPEG", progressive=True)),
        *(encoded(noise(200, 150), kind)[:-4000] for kind in ("AVIF", "HEIF", "TIFF", "JPEG2000")),
    ],
    ids=["5", "50", "5000", "20000", "restarts", "progressive", "a scan", "AVIF", "HEIC", "TIFF", "JPEG 2000"],
)
async def test_a_part_that_is_missing_is_not_made_up(client: httpx.AsyncClient, data: bytes) -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("What?", url)]})
    assert reply.status_code == 400
    assert error_of(reply)["code"] == "invalid_image"


def with_other_size(data: bytes, box: bytes, side: int) -> bytes:
    """An AVIF or HEIC file whose header tells another size than its pixels have."""
    start = data.index(box) + 8
    return data[:start] + struct.pack(">II", side, side) + data[start + 8 :]


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_pixels_are_not_more_than_the_header_says(kind: str) -> None:
    data = with_other_size(encoded(noise(4000, 3000), kind, quality=1), b"ispe", 16)
    header = read_header(data, LIMITS)
    assert header.stored_size == (16, 16)
    with suppress(BadImage):
        assert decode(data, size=header.stored_size).image.size == (16, 16)


def test_the_memory_of_a_decoder_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (6000, 6000)), "TIFF", compression="tiff_lzw")
    assert decode(data).size == (6000, 6000)
    monkeypatch.setattr(isolated, "BYTES_PER_PIXEL", 0)
    monkeypatch.setattr(isolated, "BASE_BYTES", 200_000_000)
    with pytest.raises(BadImage):
        decode(data)


def test_the_time_of_a_decoder_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (9000, 9000)), "AVIF", quality=1, speed=10)
    monkeypatch.setattr(isolated, "PIXELS_SECONDS", 0)
    with pytest.raises(BadImage):
        decode(data)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "TIFF", "JPEG2000"])
async def test_their_sizes_are_limited_by_the_header(client: httpx.AsyncClient, kind: str) -> None:
    data = encoded(Image.new("RGB", (2100, 10)), kind)
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("What?", url)]})
    assert (reply.status_code, error_of(reply)["code"]) == (400, "image_too_large")


async def test_hidden_scans_are_counted(client: httpx.AsyncClient) -> None:
    """A reserved marker has no length for libjpeg, so what follows it is no part of a segment."""
    jpeg = encoded(circle(4000, 3000), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") :][:12]
    data = jpeg[:-2] + b"\xff\x02\xff\xff" + scan * 200 + b"\xff\xd9"
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    reply = await client.post(CHAT, json={"model": "tiny", "messages": [image_message("What?", url)]})
    assert "too many scans" in error_of(reply)["message"]


@pytest.mark.parametrize("spelling", ["url-safe", "url-base64only", "url-repr", "bare", "unpadded", "lines", "MIME"])
async def test_base64_spelled_otherwise(client: httpx.AsyncClient, engine: ScriptedEngine, spelling: str) -> None:
    data = encoded(noise(40, 30), "PNG")
    text = base64.b64encode(data).decode()
    url = {
        "url-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
        "url-base64only": f"data:base64,{text}",
        "url-repr": f"data:image/png;base64,b'{text}'",
        "bare": text,
        "unpadded": f"data:image/png;base64,{text.rstrip('=')}",
        "lines": f"data:image/png;base64,{base64.encodebytes(data).decode()}",
        "MIME": f"DATA:IMAGE/PNG;BASE64,{text}",
    }[spelling]
    for sent in (f"data:image/png;base64,{text}", url):
        body = {"model": "tiny", "messages": [image_message("What?", sent)]}
        assert (await client.post(CHAT, json=body)).status_code == 200
    first, second = engine.requests
    assert first.images[0].cache_key == second.images[0].cache_key


def test_the_decoders_process_is_given_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    monkeypatch.setenv("LLAVA_API_KEY", "anne=secret")
    seen: list[dict[str, Any]] = []
    original = isolated.subprocess.run
    monkeypatch.setattr(isolated.subprocess, "run", lambda *args, **more: seen.append(more) or original(*args, **more))
    assert read_header(encoded(circle(), "TIFF"), LIMITS).stored_size == (240, 180)
    assert [more["env"] for more in seen] == [{}]


def test_without_pillow_heif_what_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    circle().save(data, "HEIF")
    monkeypatch.setattr(isolated.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Exception, match=r"a HEIC file.*llava-api\[heic\].*or send a JPEG"):
        read_header(data.getvalue(), LIMITS)
