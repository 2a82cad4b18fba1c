"""How many tokens an image costs and which tiles it is cut into, computed from its width and height only.

This runs before a pixel is decoded, so that a request that cannot fit is refused cheaply. It must not import Pillow,
numpy or torch. The rules are LLaVA's own (``llava/mm_utils.py``, ``llava/model/llava_arch.py``); pinpoints are read as
(width, height), as the original reads them.
"""

import math
from dataclasses import dataclass
from typing import Literal

Size = tuple[int, int]
"""(width, height) in pixels."""
Pinpoints = tuple[Size, ...]
"""The sizes that a grid of tiles may have."""
PatchMerge = Literal["spatial_unpad", "spatial", "flat"]
"""How the features of an image's tiles become one row of tokens (``mm_patch_merge_type``)."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """How one image is cut into ``across`` x ``down`` tiles.

    ``rows`` and ``columns`` are the feature rows and columns that hold image rather than padding, in units of vision
    patches over the whole grid.
    """

    across: int
    down: int
    rows: range
    columns: range

    @property
    def tiles(self) -> int:
        return self.across * self.down


def select_best_resolution(size: Size, pinpoints: Pinpoints) -> Size:
    """The pinpoint (width, height) that keeps most of the image, then wastes least; the first of equals.

    Source: ``select_best_resolution`` in LLaVA's ``mm_utils.py``.
    """
    width, height = size
    best: Size = pinpoints[0]
    most_kept, least_wasted = 0, math.inf
    for target_width, target_height in pinpoints:
        scale = min(target_width / width, target_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = target_width * target_height - kept
        if kept > most_kept or (kept == most_kept and wasted < least_wasted):
            best, most_kept, least_wasted = (target_width, target_height), kept, wasted
    return best


def fit_within(size: Size, target: Size) -> Size:
    """The (width, height) of an image scaled into ``target`` with its ratio kept.

    Source: ``resize_and_pad_image`` in LLaVA's ``mm_utils.py``.
    """
    width, height = size
    target_width, target_height = target
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        return target_width, min(math.ceil(height * scale_width), target_height)
    return min(math.ceil(width * scale_height), target_width), target_height


def square_size(size: Size, tile_pixels: int) -> Size:
    """The (width, height) of an image whose shorter side is scaled to ``tile_pixels``. Source: CLIP's processor."""
    width, height = size
    stretched = int(tile_pixels * max(size) / min(size))
    return (tile_pixels, stretched) if width <= height else (stretched, tile_pixels)


def unpadded_spans(size: Size, grid_columns: int, grid_rows: int, *, rounds: bool = False) -> tuple[range, range]:
    """(rows, columns) of a feature grid that hold image rather than padding.

    Source: ``unpad_image`` in LLaVA's ``llava_arch.py``, including its integer truncation. ``rounds``: round to 7
    digits before truncating, as transformers does.
    """
    width, height = size
    wide = width / height > grid_columns / grid_rows
    kept = height * (grid_columns / width) if wide else width * (grid_rows / height)
    length = grid_rows if wide else grid_columns
    padding = (length - int(round(kept, 7) if rounds else kept)) // 2
    unpadded = range(padding, length - padding)
    return (unpadded, range(grid_columns)) if wide else (range(grid_rows), unpadded)


def tile_grid(
    size: Size, pinpoints: Pinpoints, tile_pixels: int, patch_pixels: int, *, rounds: bool = False
) -> TileGrid:
    """The grid that an image is cut into. ``rounds``: see ``unpadded_spans``."""
    width, height = select_best_resolution(size, pinpoints)
    across, down = width // tile_pixels, height // tile_pixels
    side = tile_pixels // patch_pixels
    rows, columns = unpadded_spans(size, across * side, down * side, rounds=rounds)
    return TileGrid(across, down, rows, columns)


def transformers_grid(size: Size, pinpoints: Pinpoints, tile_pixels: int, patch_pixels: int) -> TileGrid:
    """``tile_grid`` as transformers computes it: pinpoints read as (height, width), sizes rounded to 7 digits."""
    return tile_grid(size, mirrored(pinpoints), tile_pixels, patch_pixels, rounds=True)


def mirrored(pinpoints: Pinpoints) -> Pinpoints:
    return tuple((second, first) for first, second in pinpoints)


def merged_tokens(grid: TileGrid, tile_tokens: int, merge: PatchMerge) -> int:
    """Image tokens of a base tile and its grid. Source: ``prepare_inputs_labels_for_multimodal``.

    ``spatial_unpad`` drops the padding and ends each row with a newline token; ``spatial`` (row by row over the whole
    grid) and ``flat`` (tile by tile) keep every feature and add none.
    """
    if merge == "spatial_unpad":
        return tile_tokens + len(grid.rows) * (len(grid.columns) + 1)
    return tile_tokens * (1 + grid.tiles)


def size_for_transformers(size: Size, pinpoints: Pinpoints, tile_pixels: int, patch_pixels: int) -> Size:
    """The (width, height) that makes the engine's model choose LLaVA's own grid and unpadding.

    The model chooses both again from a size that it is given, by transformers' functions. Those read pinpoints as
    (height, width), which is solved by giving them mirrored, and round to 7 digits before they truncate. The image's
    own size is used if both agree, else one that is a hair off. Raises ValueError if there is none (none is known).
    """
    wanted = tile_grid(size, pinpoints, tile_pixels, patch_pixels)
    width, height = size
    for scale in (1, 1000):
        for wider, taller in ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0)):
            candidate = (width * scale + wider, height * scale + taller)
            if min(candidate) > 0 and wanted == tile_grid(candidate, pinpoints, tile_pixels, patch_pixels, rounds=True):
                return candidate
    raise ValueError(f"no size makes transformers choose LLaVA's grid for {size}")
