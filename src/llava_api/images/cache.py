"""Images that are ready for the model."""

from collections import OrderedDict
from dataclasses import dataclass

from llava_api.vision.geometry import Size
from llava_api.vision.normalisation import Pixels


@dataclass(frozen=True, slots=True)
class RenderedImage:
    pixels: Pixels
    """(3, S, S) for one tile, (1 + tiles, 3, S, S) for a grid."""
    tokens: int
    cache_key: str
    """Made of the file's bytes and how it was rendered. A client cannot choose it."""
    engine_size: Size | None
    """(width, height) that a LLaVA-1.6 engine is told; see ``ImageMode.engine_size``."""


class ImageCache:
    """Bounded by the bytes of its pixels; the least recently used image goes first. Use it only on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.images: OrderedDict[str, RenderedImage] = OrderedDict()

    def get(self, key: str) -> RenderedImage | None:
        image = self.images.get(key)
        if image is not None:
            self.images.move_to_end(key)
        return image

    def put(self, image: RenderedImage) -> None:
        if image.cache_key in self.images or image.pixels.nbytes > self.max_bytes:
            return
        self.images[image.cache_key] = image
        self.held_bytes += image.pixels.nbytes
        while self.held_bytes > self.max_bytes:
            _, oldest = self.images.popitem(last=False)
            self.held_bytes -= oldest.pixels.nbytes
