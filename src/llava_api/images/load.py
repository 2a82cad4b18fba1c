"""Image parts -> pixels and token counts, the expensive half in worker threads.

Two steps, so that a request that cannot fit is refused before a pixel is decoded: ``measure`` reads headers,
``render`` decodes and converts.
"""

from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from llava_api.errors import BadImage
from llava_api.images import decode, geometry, pixels, source

TOO_NARROW = "The picture is too long for its width: crop it, or scale it down."


@dataclass(frozen=True, slots=True)
class ImageMode:
    """How the checkpoint at hand was shown its pictures."""

    name: Literal["pad", "anyres"]
    tile_pixels: int
    patch_pixels: int
    pinpoints: tuple[geometry.Size, ...]
    normalisation: pixels.Normalisation


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One ``image_url`` part: its URL and its place in the request, for error messages."""

    url: str
    param: str


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """A picture whose header is known and whose pixels are still in their file."""

    data: bytes
    param: str
    size: geometry.Size
    tokens: int


@dataclass(frozen=True, slots=True)
class RenderedImage:
    pixels: pixels.FloatArray
    """(3, S, S) for pad, (1 + tiles, 3, S, S) for anyres."""
    tokens: int
    cache_key: str
    """Covers the file's bytes and how it was rendered; nothing a client can name."""
    engine_size: geometry.Size | None
    """For anyres the (width, height) that the engine is told; see geometry.size_for_transformers."""


def measure(part: ImagePart, mode: ImageMode, max_image_bytes: int, max_pixels: int) -> MeasuredImage:
    data = source.read_data_url(part.url, part.param, max_image_bytes)
    header = decode.read_header(data, part.param, max_pixels)
    size = (header.width, header.height)
    if mode.name == "pad":
        # LLaVA pads before it scales: a file of 87 bytes can be a line 60,000 pixels long, its square 14 GB.
        if max(size) ** 2 > 2 * max_pixels:
            raise BadImage(TOO_NARROW, param=part.param, code="image_too_large")
        tokens = geometry.pad_tokens(mode.tile_pixels, mode.patch_pixels)
    else:
        # Beyond this a side scales to nothing, and LLaVA's own code divides by zero.
        if max(size) > 200 * min(size):
            raise BadImage(TOO_NARROW, param=part.param, code="image_too_large")
        tokens = geometry.anyres_tokens(size, mode.pinpoints, mode.tile_pixels, mode.patch_pixels)
    return MeasuredImage(data, part.param, size, tokens)


def render(image: MeasuredImage, mode: ImageMode) -> RenderedImage:
    picture = decode.decode(image.data, image.param)
    digest = blake3(image.data).hexdigest()
    key = f"{digest}-{mode.name}-{mode.tile_pixels}"
    if mode.name == "pad":
        array = pixels.pad_pixels(picture, mode.tile_pixels, mode.normalisation)
        return RenderedImage(array, image.tokens, key, None)
    array = pixels.anyres_pixels(picture, mode.pinpoints, mode.tile_pixels, mode.normalisation)
    engine_size = geometry.size_for_transformers(image.size, mode.pinpoints, mode.tile_pixels, mode.patch_pixels)
    return RenderedImage(array, image.tokens, key, engine_size)
