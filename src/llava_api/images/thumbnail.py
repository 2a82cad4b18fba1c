"""A picture file -> a small picture that a browser shows, within the same limits as on the server."""

import base64
import io
from dataclasses import dataclass

from llava_api.images.decode import Limits, decode, read_header

SHOWN_SIDE = 448
"""Pixels of the longer side of what a page shows; larger pictures are scaled down for it."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    url: str
    """A data: URL of a WebP picture."""
    format: str
    """Of the file itself: JPEG, PNG, WEBP, GIF or BMP."""
    width: int
    """Of the picture itself, upright, in pixels."""
    height: int


def thumbnail_of(data: bytes, limits: Limits) -> Thumbnail:
    """Decodes the whole file, so that a damaged one is told here. Raises BadImage, without its place."""
    header = read_header(data, limits)
    width, height = header.upright_size()
    scale = min(1.0, SHOWN_SIDE / max(width, height))
    wanted = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = decode(data, header.orientation, needed=wanted).image
    if image.size != wanted:
        image = image.resize(wanted)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    url = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(url, header.format, width, height)
