"""A decoded picture -> the exact pixels that a LLaVA checkpoint was trained on.

The arithmetic is LLaVA's (``process_images`` in ``mm_utils.py``) on Pillow's bicubic filter and CLIP's
processor in float32; golden checksums in ``tests/golden/pixels.json`` hold it to the bit. Arrays are numpy so
that this module, and everything that imports it, works without torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_api.images.geometry import Size, fit_within, select_best_resolution

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Per-channel mean and standard deviation that the vision tower expects (RGB, in units of 0..1)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def table(self) -> FloatArray:
        """(3, 256) float32: the normalised value of each byte of each channel.

        There are only 768 possible results, so a look-up replaces float arithmetic over the whole picture and
        gives the same bits as transformers' rescale (float64, then float32) and normalise (float32).
        """
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean = np.asarray(self.mean, dtype=np.float32)[:, None]
        std = np.asarray(self.std, dtype=np.float32)[:, None]
        return ((scaled[None, :] - mean) / std).astype(np.float32)

    def fill_colour(self) -> tuple[int, int, int]:
        """What LLaVA-1.5 pads with: the mean as bytes, (122, 116, 104) for CLIP."""
        red, green, blue = (int(channel * 255) for channel in self.mean)
        return red, green, blue


def normalise(image: Image.Image, table: FloatArray) -> FloatArray:
    """An RGB picture of (width, height) -> float32 (3, height, width)."""
    pixels = np.asarray(image)
    out = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[:, :, channel], out=out[channel])
    return out


def pad_to_square(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """The picture centred on a square of its longer side. Source: ``expand2square``."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def pad_pixels(image: Image.Image, tile_pixels: int, normalisation: Normalisation) -> FloatArray:
    """LLaVA-1.5 (``image_aspect_ratio: pad``): float32 (3, tile_pixels, tile_pixels)."""
    square = pad_to_square(image, normalisation.fill_colour())
    resized = square.resize((tile_pixels, tile_pixels), Image.Resampling.BICUBIC)
    return normalise(resized, normalisation.table())


def square_pixels(image: Image.Image, tile_pixels: int, normalisation: Normalisation) -> FloatArray:
    """Shorter side to ``tile_pixels``, then the middle cut out: float32 (3, tile_pixels, tile_pixels).

    What LLaVA does where ``image_aspect_ratio`` is not set. Source: ``process_images`` and CLIP's processor.
    """
    width, height = image.size
    shorter, longer = min(width, height), max(width, height)
    stretched = int(tile_pixels * longer / shorter)
    size = (tile_pixels, stretched) if width <= height else (stretched, tile_pixels)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - tile_pixels) // 2, (size[1] - tile_pixels) // 2
    cut = resized.crop((left, top, left + tile_pixels, top + tile_pixels))
    return normalise(cut, normalisation.table())


def anyres_canvas(image: Image.Image, target: Size) -> Image.Image:
    """The picture scaled into ``target`` (width, height) and centred on black. Source: ``resize_and_pad_image``."""
    fitted = fit_within(image.size, target)
    canvas = Image.new("RGB", target)
    offset = ((target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2)
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), offset)
    return canvas


def anyres_pixels(
    image: Image.Image, pinpoints: tuple[Size, ...], tile_pixels: int, normalisation: Normalisation
) -> FloatArray:
    """LLaVA-1.6 (``anyres``): float32 (1 + tiles, 3, tile_pixels, tile_pixels), the base tile first.

    The base tile is the whole picture squashed; the others are the picture scaled into the best pinpoint,
    padded with black, cut row by row. Source: ``process_anyres_image``.
    """
    table = normalisation.table()
    target = select_best_resolution(image.size, pinpoints)
    base = image.resize((tile_pixels, tile_pixels), Image.Resampling.BICUBIC)
    whole = normalise(anyres_canvas(image, target), table)
    tiles = [normalise(base, table)]
    for top in range(0, target[1], tile_pixels):
        for left in range(0, target[0], tile_pixels):
            tiles.append(whole[:, top : top + tile_pixels, left : left + tile_pixels])
    return np.stack(tiles)
