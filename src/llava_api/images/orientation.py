"""Reads the EXIF orientation, the only tag that is needed here.

Pillow's reader warns about other tags, fails at them or takes long to read them, and cameras write odd ones. Source:
EXIF 2.3, TIFF 6.0.
"""

import struct
from typing import Any

ORIENTATION = 0x0112
FORMATS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types BYTE, SHORT and LONG, all of which occur."""
MAX_TAGS = 500
RAW_PROFILE = "Raw profile type exif"


def orientation_of(info: dict[Any, Any]) -> int:
    """1 to 8, from the metadata that Pillow found in a file; 1 (upright) if it has no valid orientation."""
    exif = info.get("exif")
    if not isinstance(exif, bytes):
        exif = from_raw_profile(info.get(RAW_PROFILE))
    try:
        value = first_directory(exif.removeprefix(b"Exif\0\0")).get(ORIENTATION, 1)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def from_raw_profile(text: object) -> bytes:
    """Read EXIF as ImageMagick keeps it in a PNG: a line each for name and length, then hexadecimal digits."""
    if not isinstance(text, str):
        return b""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def first_directory(tiff: bytes) -> dict[int, int]:
    """The tags of a TIFF's first directory that are whole numbers. Raises struct.error if it is cut short."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return {}
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    found: dict[int, int] = {}
    for entry in range(start + 2, start + 2 + 12 * min(count, MAX_TAGS), 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        if kind in FORMATS:
            found[tag] = struct.unpack_from(f"{order}{FORMATS[kind]}", tiff, entry + 8)[0]
    return found
