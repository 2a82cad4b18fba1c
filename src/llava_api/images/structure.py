"""What can be said of a file from its bytes, before Pillow opens it.

A few megabytes of empty JPEG segments, fill bytes, PNG chunks or GIF sub-blocks are quick to write and keep Pillow,
which reads metadata in Python, busy for a minute. Real files have tens of segments and at most thousands of the
other parts, so files with more are refused.
"""

from collections.abc import Iterator

import numpy as np

from llava_api.errors import BadImage

MAX_PARTS = 20_000
MAX_JPEG_SEGMENTS = 1_000
MAX_FILL_BYTES = 64
MAX_PACKED_CHUNKS = 32
"""Pillow unpacks up to a megabyte from each, which may be a thousand times what is stored."""
PACKED = (b"iCCP", b"zTXt", b"iTXt")
WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers that no length follows."""
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
TOO_MANY_PARTS = "The image file is made of too many small parts: save it again."

UNSUPPORTED = (
    (b"%PDF-", "a PDF file"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"II*\0", "a TIFF file"),
    (b"MM\0*", "a TIFF file"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"PK\3\4", "a ZIP or Office file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x1aE\xdf\xa3", "a video"),
)
"""(first bytes, what it is) of files that people send as images. Lower-case entries match letters of either case."""
BRANDS = {b"avif": "an AVIF file", b"avis": "an AVIF file", b"heic": "a HEIC file", b"heix": "a HEIC file"}
BRANDS |= {b"mif1": "a HEIC file", b"msf1": "a HEIC file", b"hevc": "a HEIC file"}


def unsupported_kind(data: bytes) -> str | None:
    """What a file is that is not one of the five kinds taken here; None if that is not known."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in UNSUPPORTED:
        if start.startswith(signature) or start.lower().startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video")
    return None


def check_structure(data: bytes) -> None:
    """Raises BadImage, without ``param``. Damaged files are left to the decoder."""
    if data.startswith(b"\xff\xd8"):
        limit(jpeg_segments(data), MAX_JPEG_SEGMENTS)
    elif data.startswith(b"\x89PNG"):
        limit(png_chunks(data), MAX_PARTS)
        limit((start for start in png_chunks(data) if data[start + 4 : start + 8] in PACKED), MAX_PACKED_CHUNKS)
    elif data.startswith(b"GIF8"):
        limit(gif_blocks(data), MAX_PARTS)


def limit(parts: Iterator[int], most: int) -> None:
    for number, _ in enumerate(parts):
        if number >= most:
            raise BadImage(TOO_MANY_PARTS)


def jpeg_segments(data: bytes) -> Iterator[int]:
    """Yields where each segment before the first scan begins. Fill bytes between two count from the 65th on."""
    position, end = 2, len(data)
    while position + 4 <= end:
        start = position
        while position < end and data[position] == 0xFF:
            position += 1
            if position - start > MAX_FILL_BYTES:
                yield position
        if position == start:
            # Pillow skips such bytes one at a time as well.
            position += 1
            yield position
            continue
        marker = data[position] if position < end else END_OF_IMAGE
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            return
        position += 1
        yield position
        if marker not in WITHOUT_LENGTH:
            position += max(int.from_bytes(data[position : position + 2]), 2)


def count_scans(jpeg: bytes) -> int:
    """Passes over the image that a JPEG file asks for, including those of thumbnails in its metadata."""
    # For megabytes this is five times as fast as bytes.count, which stops at every 0xFF.
    data = np.frombuffer(jpeg, dtype=np.uint8)
    marks = np.flatnonzero(data[:-1] == 0xFF)
    return int(np.count_nonzero(data[marks + 1] == START_OF_SCAN))


def png_chunks(data: bytes) -> Iterator[int]:
    position = 8
    while position + 12 <= len(data):
        yield position
        position += 12 + int.from_bytes(data[position : position + 4])


def gif_blocks(data: bytes) -> Iterator[int]:
    """Blocks and sub-blocks up to those of the first image."""
    position = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    while position + 2 < len(data):
        if data[position] != 0x21:
            # An image ends the search. Anything else is not part of a GIF, and is skipped a byte at a time.
            if data[position] in (0x2C, 0x3B):
                return
            position += 1
            yield position
            continue
        position += 2
        while position < len(data) and data[position]:
            yield position
            position += 1 + data[position]
        yield position
        position += 1
