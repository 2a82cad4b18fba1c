"""The one EXIF tag that matters here.

Read by ourselves because Pillow's reader warns, fails or takes its time over tags that nobody needs, and cameras write
odd ones. Source: EXIF 2.3, TIFF 6.0.
"""

import struct
from typing import Any

ORIENTATION = 0x0112
FORMATS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types BYTE, SHORT and LONG; writers do not agree on one."""
MAX_TAGS = 500
RAW_PROFILE = "Raw profile type exif"


def orientation_of(info: dict[Any, Any]) -> int:
    """1 to 8 from what Pillow found in a file's metadata; 1 (upright) where there is none, or none that is valid."""
    exif = info.get("exif")
    if not isinstance(exif, bytes):
        exif = from_raw_profile(info.get(RAW_PROFILE))
    try:
        value = first_directory(exif.removeprefix(b"Exif\0\0")).get(ORIENTATION, 1)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def from_raw_profile(text: object) -> bytes:
    """As ImageMagick keeps EXIF in a PNG: a line each for name and length, then hexadecimal digits."""
    if not isinstance(text, str):
        return b""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def first_directory(tiff: bytes) -> dict[int, int]:
    """The whole numbers among the tags of a TIFF's first directory. Raises struct.error where it is cut short."""
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
