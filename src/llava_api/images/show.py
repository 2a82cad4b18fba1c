"""The pixels that a model is shown -> pictures that a person can look at."""

from pathlib import Path

import numpy as np
from PIL import Image

from llava_api.vision.geometry import TileGrid
from llava_api.vision.normalisation import Normalisation, Pixels

GAP = 4
"""Pixels between the tiles of a grid, so that the cuts can be seen."""


def as_picture(tile: Pixels, normalisation: Normalisation) -> Image.Image:
    """Levels or normalised float32 (3, S, S) -> RGB of S x S."""
    if tile.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0)))
    mean = np.asarray(normalisation.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(normalisation.std, dtype=np.float32)[:, None, None]
    levels = np.rint((tile * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))


def save_shown(
    pixels: Pixels, grid: TileGrid | None, normalisation: Normalisation, folder: Path, name: str
) -> list[Path]:
    """Write what the model sees of one picture as PNG files; the files written.

    One tile is ``name.png``; a grid is ``name-base.png``, ``name-row-column.png`` counted from 1, and all of them
    side by side as ``name-grid.png``.
    """
    if grid is None:
        only = pixels if pixels.ndim == 3 else pixels[0]
        return [save(as_picture(only, normalisation), folder / f"{name}.png")]
    base, *tiles = (as_picture(tile, normalisation) for tile in pixels)
    side = base.width
    whole = Image.new("RGB", (grid.across * (side + GAP) - GAP, grid.down * (side + GAP) - GAP), "magenta")
    written = [save(base, folder / f"{name}-base.png")]
    for number, tile in enumerate(tiles):
        row, column = divmod(number, grid.across)
        whole.paste(tile, (column * (side + GAP), row * (side + GAP)))
        written.append(save(tile, folder / f"{name}-{row + 1}-{column + 1}.png"))
    return [*written, save(whole, folder / f"{name}-grid.png")]


def save(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path
