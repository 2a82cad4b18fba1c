"""A decoded image -> the exact pixels that a LLaVA checkpoint was trained on.

The arithmetic is LLaVA's (``process_images`` in ``mm_utils.py``) with Pillow's bicubic filter; golden checksums in
``tests/golden/pixels.json`` check every bit. The results are levels, 0 to 255: CLIP's normalisation of a level is one
of 768 float32 values, which the model looks up where it runs (``engine/vllm_models.py``), so a quarter of the bytes is
sent and kept. Arrays are numpy's, so that this module and all that import it work without torch.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from llava_api.images.decode import Decoded
from llava_api.images.mode import ImageMode
from llava_api.vision.geometry import Size, fit_within, select_best_resolution, square_size
from llava_api.vision.normalisation import Levels, Normalisation, Pixels

BAND = 256
"""Rows that are padded at a time."""


def levels(image: Image.Image) -> Levels:
    """An RGB image of (width, height) -> uint8 (3, height, width)."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resize(decoded: Decoded, size: Size) -> Image.Image:
    """The image in ``size`` (width, height), whatever scale it was decoded at."""
    return decoded.image.resize(size, Image.Resampling.BICUBIC, decoded.box())


def squeeze_padded(image: Image.Image, tile_pixels: int, fill: tuple[int, int, int]) -> Image.Image:
    """The image centred on a square of its longer side, resized to (tile_pixels, tile_pixels).

    Source: ``expand2square``, then a bicubic resize. Pillow resizes rows first, then columns, with whole levels in
    between; doing the rows in bands gives the same bits and never holds the square, which for a long image is much
    larger than the image.
    """
    width, height = image.size
    side = max(width, height)
    narrow = Image.new("RGB", (tile_pixels, side), fill)
    if width == side:
        narrow.paste(image.resize((tile_pixels, height), Image.Resampling.BICUBIC), (0, (side - height) // 2))
    else:
        for start in range(0, height, BAND):
            rows = image.crop((0, start, width, min(start + BAND, height)))
            padded = Image.new("RGB", (side, rows.height), fill)
            padded.paste(rows, ((side - width) // 2, 0))
            narrow.paste(padded.resize((tile_pixels, rows.height), Image.Resampling.BICUBIC), (0, start))
    return narrow.resize((tile_pixels, tile_pixels), Image.Resampling.BICUBIC)


def squeeze_padded_reduced(decoded: Decoded, tile_pixels: int, fill: tuple[int, int, int]) -> Image.Image:
    """``squeeze_padded`` for an image that was decoded at a fraction of its size.

    The square's edges are where they would be around the whole image, if need be between pixels of the reduced one.
    """
    scale, (width, height) = decoded.scale, decoded.size
    side = max(width, height)
    left, top = (side - width) // 2 / scale, (side - height) // 2 / scale
    room = math.ceil(side / scale) + 2
    # Along the longer side nothing is padded, and the filter must find nothing but the image there.
    canvas_size = (room if width < side else decoded.image.width, room if height < side else decoded.image.height)
    canvas = Image.new("RGB", canvas_size, fill)
    offset = (math.ceil(left), math.ceil(top))
    canvas.paste(fade_edges(decoded, fill), offset)
    x, y = offset[0] + decoded.start[0] - left, offset[1] + decoded.start[1] - top
    box = (x, y, x + side / scale, y + side / scale)
    return canvas.resize((tile_pixels, tile_pixels), Image.Resampling.BICUBIC, box)


def fade_edges(decoded: Decoded, fill: tuple[int, int, int]) -> Image.Image:
    """The reduced image, whose partly filled pixels are mixed with the padding beside them."""
    if decoded.size[0] == decoded.size[1]:
        return decoded.image
    image = decoded.image.copy()
    left, top, right, bottom = decoded.box()
    width, height = image.size
    if decoded.size[0] < decoded.size[1]:
        edges = ((1 - left, (0, 0, 1, height)), (right - width + 1, (width - 1, 0, width, height)))
    else:
        edges = ((1 - top, (0, 0, width, 1)), (bottom - height + 1, (0, height - 1, width, height)))
    for covered, strip in edges:
        edge = image.crop(strip)
        image.paste(Image.blend(Image.new("RGB", edge.size, fill), edge, covered), strip)
    return image


def pad_levels(decoded: Decoded, tile_pixels: int, normalisation: Normalisation) -> Levels:
    """Layout ``pad``: uint8 (3, tile_pixels, tile_pixels)."""
    fill = normalisation.fill_colour()
    if decoded.scale == 1:
        return levels(squeeze_padded(decoded.image, tile_pixels, fill))
    return levels(squeeze_padded_reduced(decoded, tile_pixels, fill))


def square_levels(decoded: Decoded, tile_pixels: int) -> Levels:
    """Shorter side to ``tile_pixels``, then the middle cut out: uint8 (3, tile_pixels, tile_pixels).

    LLaVA does this if ``image_aspect_ratio`` is not set. Source: ``process_images`` and CLIP's processor.
    """
    size = square_size(decoded.size, tile_pixels)
    left, top = (size[0] - tile_pixels) // 2, (size[1] - tile_pixels) // 2
    return levels(resize(decoded, size).crop((left, top, left + tile_pixels, top + tile_pixels)))


def anyres_canvas(decoded: Decoded, target: Size) -> Image.Image:
    """The image scaled into ``target`` (width, height) and centred on black. Source: ``resize_and_pad_image``."""
    fitted = fit_within(decoded.size, target)
    canvas = Image.new("RGB", target)
    offset = ((target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2)
    canvas.paste(resize(decoded, fitted), offset)
    return canvas


def base_levels(decoded: Decoded, tile_pixels: int) -> Levels:
    """The whole image squashed into one tile, the first of a grid: uint8 (1, 3, tile_pixels, tile_pixels)."""
    return levels(resize(decoded, (tile_pixels, tile_pixels)))[None]


def anyres_levels(decoded: Decoded, pinpoints: tuple[Size, ...], tile_pixels: int) -> Levels:
    """Layout ``anyres``: uint8 (1 + tiles, 3, tile_pixels, tile_pixels), the base tile first.

    The base tile is the whole image squashed. The others are the image scaled into the best pinpoint,
    padded with black, cut row by row. Source: ``process_anyres_image``.
    """
    target = select_best_resolution(decoded.size, pinpoints)
    across, down = target[0] // tile_pixels, target[1] // tile_pixels
    whole = levels(anyres_canvas(decoded, target))
    tiles = whole.reshape(3, down, tile_pixels, across, tile_pixels).transpose(1, 3, 0, 2, 4)
    return np.concatenate([base_levels(decoded, tile_pixels), tiles.reshape(-1, 3, tile_pixels, tile_pixels)])


def render_pixels(decoded: Decoded, mode: ImageMode) -> Pixels:
    """What the model is shown of a decoded image."""
    if mode.hub_processor is not None:
        shown = mode.hub_processor.pixels(decoded.image)
        return shown[:1] if mode.base_only else shown
    return base_levels(decoded, mode.tile_pixels) if mode.base_only else LEVELS[mode.name](decoded, mode)


LEVELS: dict[str, Callable[[Decoded, ImageMode], Levels]] = {
    "pad": lambda decoded, mode: pad_levels(decoded, mode.tile_pixels, mode.normalisation),
    "square": lambda decoded, mode: square_levels(decoded, mode.tile_pixels),
    "anyres": lambda decoded, mode: anyres_levels(decoded, mode.pinpoints, mode.tile_pixels),
}
"""Layout -> the levels of an image in it."""
