"""Image parts -> pixels and token counts, the expensive half in worker threads.

Two steps, so that a request that cannot fit is refused before a pixel is decoded: ``measure`` reads headers,
``render`` decodes and converts.
"""

from dataclasses import dataclass

from blake3 import blake3
from PIL import Image

from llava_api.errors import BadImage
from llava_api.images import decode, pixels, source
from llava_api.images.geometry import Size
from llava_api.images.mode import ImageMode

TOO_NARROW = "The picture is too long for its width: crop it, or scale it down."


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
    header: decode.Header
    size: Size
    """(width, height) as the model is shown it."""
    tokens: int


@dataclass(frozen=True, slots=True)
class RenderedImage:
    pixels: pixels.FloatArray
    """(3, S, S) for one tile, (1 + tiles, 3, S, S) for a grid."""
    tokens: int
    cache_key: str
    """Covers the file's bytes and how it was rendered; nothing a client can name."""
    engine_size: Size | None
    """(width, height) that a LLaVA-1.6 engine is told; see ``ImageMode.engine_size``."""


def measure(part: ImagePart, mode: ImageMode, max_image_bytes: int, max_pixels: int) -> MeasuredImage:
    data = source.read_data_url(part.url, part.param, max_image_bytes)
    header = decode.read_header(data, part.param, max_pixels)
    size = header.upright_size() if mode.upright else header.stored_size
    if mode.too_long(size, max_pixels):
        raise BadImage(TOO_NARROW, param=part.param, code="image_too_large")
    return MeasuredImage(data, part.param, header, size, mode.tokens(size))


def render(image: MeasuredImage, mode: ImageMode) -> RenderedImage:
    picture = decode.decode(image.data, image.param, image.header.orientation if mode.upright else 1, mode.on_white)
    key = f"{blake3(image.data).hexdigest()}-{mode.key()}"
    return RenderedImage(render_pixels(picture, mode), image.tokens, key, mode.engine_size(image.size))


def render_pixels(picture: Image.Image, mode: ImageMode) -> pixels.FloatArray:
    """What the model is shown of a decoded RGB picture."""
    if mode.hub_processor is not None:
        return mode.hub_processor.pixels(picture)
    if mode.name == "anyres":
        return pixels.anyres_pixels(picture, mode.pinpoints, mode.tile_pixels, mode.normalisation)
    if mode.name == "square":
        return pixels.square_pixels(picture, mode.tile_pixels, mode.normalisation)
    return pixels.pad_pixels(picture, mode.tile_pixels, mode.normalisation)
