"""Files that are quick to write and slow to parse: refused before Pillow opens them, which reads metadata in Python.

A few megabytes of empty JPEG segments, of fill bytes, of PNG chunks or of GIF sub-blocks keep it busy for a minute.
Real files have tens of the first, thousands of the others at most.
"""

from collections.abc import Iterator

import numpy as np

from llava_api.errors import BadImage

MAX_PARTS = 20_000
MAX_JPEG_SEGMENTS = 1_000
MAX_FILL_BYTES = 64
MAX_PACKED_CHUNKS = 32
"""Pillow unpacks up to a megabyte from each, which may be a thousand times as much as is stored."""
PACKED = (b"iCCP", b"zTXt", b"iTXt")
ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers that no length follows."""
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
CRUMBLED = "The picture's file is made of too many small parts: save it anew."


def check_structure(data: bytes) -> None:
    """Raises BadImage, without its place. What is damaged is left to whoever reads it."""
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
            raise BadImage(CRUMBLED)


def jpeg_segments(data: bytes) -> Iterator[int]:
    """Where each segment before the first scan begins; fill bytes between two count as segments from the 65th on."""
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
        if marker not in ALONE:
            position += max(int.from_bytes(data[position : position + 2]), 2)


def count_scans(jpeg: bytes) -> int:
    """How many passes over the picture a JPEG file asks for; thumbnails in its metadata count along."""
    # Five times as fast over megabytes as bytes.count, which stops at every 0xFF.
    data = np.frombuffer(jpeg, dtype=np.uint8)
    marks = np.flatnonzero(data[:-1] == 0xFF)
    return int(np.count_nonzero(data[marks + 1] == START_OF_SCAN))


def png_chunks(data: bytes) -> Iterator[int]:
    position = 8
    while position + 12 <= len(data):
        yield position
        position += 12 + int.from_bytes(data[position : position + 4])


def gif_blocks(data: bytes) -> Iterator[int]:
    """Blocks and sub-blocks up to the first picture's."""
    position = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    while position + 2 < len(data):
        if data[position] != 0x21:
            # A picture ends the search; whatever else is no GIF, and skipped a byte at a time.
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
