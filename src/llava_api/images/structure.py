"""What can be said of a file from its bytes, before Pillow opens it.

A few megabytes of empty JPEG segments, fill bytes, PNG chunks or GIF sub-blocks are quick to write and keep Pillow,
which reads metadata in Python, busy for a minute. Real files have tens of segments and at most thousands of the
other parts, so files with more are refused.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from llava_api.errors import BadImage

MAX_PARTS = 20_000
MAX_JPEG_SEGMENTS = 1_000
MAX_FILL_BYTES = 64
PACKED = (b"iCCP", b"zTXt", b"iTXt")
EXIF_TEXT = b"Raw profile type exif\0\0"
MAX_TEXT = 2**20
"""Bytes of an unpacked text, beyond which Pillow refuses a PNG."""
WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers that no length follows."""
FIRST_FRAME, FIRST_RESTART, START_OF_SCAN, END_OF_IMAGE = 0xC0, 0xD0, 0xDA, 0xD9
TOO_MANY_PARTS = "The image file is made of too many small parts: save it again."

UNSUPPORTED = (
    (b"%PDF-", "a PDF file"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"PK\3\4", "a ZIP or Office file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x1aE\xdf\xa3", "a video"),
)
"""(first bytes, what it is) of files that people send as images. Lower-case entries match letters of either case."""
HEIC = "a HEIC file"
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def unsupported_kind(data: bytes) -> str | None:
    """What a file is that is not one of the kinds taken here; None if that is not known."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in UNSUPPORTED:
        if start.startswith(signature) or start.lower().startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        # HEIC files come here if pillow-heif is not installed.
        return HEIC if data[8:12] in HEIC_BRANDS else "a video"
    return None


def check_structure(data: bytes) -> None:
    """Raises BadImage, without ``param``. Damaged files are left to the decoder."""
    if data.startswith(b"\xff\xd8"):
        limit(jpeg_segments(data), MAX_JPEG_SEGMENTS)
    elif data.startswith(b"\x89PNG"):
        limit(png_chunks(data), MAX_PARTS)
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


def scans(jpeg: bytes) -> Iterator[int]:
    """Yields where the marker of each scan is, up to the end marker: phones put a video behind it.

    Raises BadImage if there are too many segments.
    """
    data = np.frombuffer(jpeg, dtype=np.uint8)
    marks = np.flatnonzero(data[:-1] == 0xFF)
    kinds = data[marks + 1]
    # Within a scan's data, a zero follows each 0xFF that is none of a marker.
    markers = marks[(kinds != 0) & (kinds != 0xFF) & ((kinds & 0xF8) != FIRST_RESTART)]
    position = 2
    for _ in range(MAX_PARTS):
        index = int(np.searchsorted(markers, position))
        if index == len(markers):
            return
        start = int(markers[index])
        position = start + 2
        if jpeg[start + 1] == END_OF_IMAGE:
            return
        if jpeg[start + 1] == START_OF_SCAN:
            yield start
        # libjpeg looks for the next marker right behind a reserved one.
        if jpeg[start + 1] >= FIRST_FRAME and jpeg[start + 1] not in WITHOUT_LENGTH:
            position += max(int.from_bytes(jpeg[position : position + 2]), 2)
    raise BadImage(TOO_MANY_PARTS)


def without_packed_text(data: bytes) -> bytes:
    """A PNG without its colour profile and compressed texts, which need not be unpacked; other files as they are.

    One text stays: the EXIF data of ImageMagick, if Pillow would unpack it.
    """
    if not data.startswith(b"\x89PNG") or not any(kind in data for kind in PACKED):
        return data
    kept, has_exif = [data[:8]], False
    for start in png_chunks(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] in PACKED:
            if has_exif or not is_exif(data[start + 8 : end - 4]):
                continue
            has_exif = True
        kept.append(data[start:end])
    return b"".join(kept)


def is_exif(packed_text: bytes) -> bool:
    if not packed_text.startswith(EXIF_TEXT):
        return False
    try:
        return len(zlib.decompressobj().decompress(packed_text[len(EXIF_TEXT) :], MAX_TEXT)) < MAX_TEXT
    except zlib.error:
        return False


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
