"""Formats with large, rarely tested decoders: AVIF, HEIC, TIFF and JPEG 2000, each file in a process of its own.

A file can lie about its size, and a decoder can crash, hang or take all memory. Here this happens to a process that has
limits on memory and time, and none of the server's environment. It takes a tenth of a second to start.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from PIL import Image

from llava_api.vision.geometry import Size

SCRIPT = Path(__file__).with_name("decoder_process.py")
SIGNATURES = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"
)
"""Brands of ISO media files, the more telling ones first."""
BASE_BYTES = 400_000_000
"""Address space of the process with its libraries and an open file."""
BYTES_PER_PIXEL = 24
HEADER_SECONDS, PIXELS_SECONDS = 3, 20
"""Of CPU time."""
REAL_SECONDS = 60
"""For processes that do not use their CPU time."""


def kind_of(data: bytes) -> str | None:
    """Pillow's name of a file's format, if it is one of those that are decoded here and the decoder is installed."""
    for signature, name in SIGNATURES:
        if data.startswith(signature):
            return name
    if data[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(data[:4]), 128)
    found = {data[8:12], *(data[start : start + 4] for start in range(16, length, 4))}
    kind = next((kind for brand, kind in BRANDS.items() if brand in found), None)
    return None if kind == "HEIF" and importlib.util.find_spec("pillow_heif") is None else kind


def read_size(data: bytes, kind: str) -> Size:
    """(width, height) of the upright image, from the header. Raises ValueError."""
    width, height = run(data, kind, 0, HEADER_SECONDS).split()
    return int(width), int(height)


def read_pixels(data: bytes, kind: str, size: Size) -> Image.Image:
    """The first image of a file, upright, in any mode. ``size``: as ``read_size`` returned it. Raises ValueError."""
    _, head, pixels = run(data, kind, size[0] * size[1], PIXELS_SECONDS).split(b"\n", 2)
    width, height, mode = head.decode().split()
    if (int(width), int(height)) != size:
        raise ValueError("the pixels have another size than the header")
    return Image.frombytes(mode, size, pixels)


def run(data: bytes, kind: str, pixels: int, seconds: int) -> bytes:
    memory = BASE_BYTES + 3 * len(data) + BYTES_PER_PIXEL * pixels
    command = [sys.executable, "-EP", str(SCRIPT), kind, *map(str, (pixels, memory, seconds))]
    try:
        done = subprocess.run(command, input=data, capture_output=True, env={}, timeout=REAL_SECONDS, check=True)
    except subprocess.SubprocessError as error:
        raise ValueError(f"a {kind} file that cannot be decoded") from error
    return done.stdout
