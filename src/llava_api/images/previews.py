"""Images for people: cells of colour for a terminal, thumbnails for a browser, the model's view as PNG files."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava_api.images.decode import Limits, decode, read_header
from llava_api.vision.geometry import Size, TileGrid
from llava_api.vision.normalisation import Normalisation, Pixels

Colour = tuple[int, int, int]
"""Red, green, blue; 0 to 255."""

ANY_SIZE = Limits(max_pixels=1_000_000_000, max_side=1_000_000, max_aspect_ratio=1_000_000)
"""The server decides what is too large."""
MINIATURE_PIXELS = 50_000_000
"""A larger image would take too long to decode for a miniature."""
THUMBNAIL_SIDE = 448
"""Pixels of a thumbnail's longer side."""
GAP = 4
"""Pixels between the tiles of a grid, to show where they are cut."""


def media_type(data: bytes) -> str:
    """For example ``image/png``. Raises BadImage, without ``param``, if the server would not take the file."""
    return f"image/{read_header(data, ANY_SIZE).format.lower()}"


def miniature(data: bytes, columns: int, rows: int) -> list[list[Colour]] | None:
    """At most ``rows`` rows of ``columns`` colours, in the image's proportions; None if it is too large.

    Raises BadImage, without ``param``, if the file is damaged.
    """
    header = read_header(data, ANY_SIZE)
    width, height = header.upright_size()
    if width * height > MINIATURE_PIXELS:
        return None
    size = scaled(header.upright_size(), max(width / columns, height / rows, 1.0))
    image = decode(data, header.orientation, needed=size).image.resize(size, reducing_gap=2.0)
    return [[tuple(colour) for colour in row] for row in np.asarray(image).tolist()]


@dataclass(frozen=True, slots=True)
class Thumbnail:
    url: str
    """A data: URL of a WebP image."""
    format: str
    """The file's own format: JPEG, PNG, WEBP, GIF, BMP, HEIF, AVIF, TIFF or JPEG2000."""
    width: int
    """The image's own width, upright, in pixels."""
    height: int


def thumbnail_of(data: bytes, limits: Limits) -> Thumbnail:
    """Decodes the whole file, so a damaged one is found here. Raises BadImage, without ``param``."""
    header = read_header(data, limits)
    width, height = header.upright_size()
    size = scaled((width, height), max(max(width, height) / THUMBNAIL_SIDE, 1.0))
    image = decode(data, header.orientation, needed=size).image
    if image.size != size:
        image = image.resize(size)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    url = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(url, header.format, width, height)


def scaled(size: Size, divisor: float) -> Size:
    return max(1, round(size[0] / divisor)), max(1, round(size[1] / divisor))


def save_as_shown(
    pixels: Pixels, grid: TileGrid | None, normalisation: Normalisation, folder: Path, name: str
) -> list[Path]:
    """Write what the model sees of one image as PNG files and return their paths.

    One tile is ``name.png``. A grid is ``name-base.png``, ``name-row-column.png`` counted from 1, and all of them
    side by side as ``name-grid.png``.
    """
    if grid is None:
        return [save(to_image(pixels if pixels.ndim == 3 else pixels[0], normalisation), folder / f"{name}.png")]
    base, *tiles = (to_image(tile, normalisation) for tile in pixels)
    side = base.width
    whole = Image.new("RGB", (grid.across * (side + GAP) - GAP, grid.down * (side + GAP) - GAP), "magenta")
    paths = [save(base, folder / f"{name}-base.png")]
    for number, tile in enumerate(tiles):
        row, column = divmod(number, grid.across)
        whole.paste(tile, (column * (side + GAP), row * (side + GAP)))
        paths.append(save(tile, folder / f"{name}-{row + 1}-{column + 1}.png"))
    return [*paths, save(whole, folder / f"{name}-grid.png")]


def to_image(tile: Pixels, normalisation: Normalisation) -> Image.Image:
    """Levels or normalised float32 (3, S, S) -> RGB of S x S."""
    levels = tile
    if tile.dtype != np.uint8:
        mean = np.asarray(normalisation.mean, dtype=np.float32)[:, None, None]
        std = np.asarray(normalisation.std, dtype=np.float32)[:, None, None]
        levels = np.rint((tile * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path
