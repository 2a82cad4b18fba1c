"""How many tokens a picture costs and which tiles it is cut into, from its width and height alone.

This is pure arithmetic: it runs before a pixel is decoded, so that a request that cannot fit is refused
cheaply. It must not import Pillow, numpy or torch. Every rule here is LLaVA's own (``llava/mm_utils.py``,
``llava/model/llava_arch.py``); pinpoints are read as (width, height), as the original reads them.
"""

import math
from dataclasses import dataclass
from typing import Literal

Size = tuple[int, int]
"""(width, height) in pixels."""
PatchMerge = Literal["spatial_unpad", "spatial", "flat"]
"""How the features of a picture's tiles become one row of tokens (``mm_patch_merge_type``)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of feature rows or columns."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TileGrid:
    """How one picture is cut for an any-res (LLaVA-1.6) checkpoint.

    ``across`` x ``down`` tiles; ``rows`` and ``columns`` are the feature rows and columns that hold picture
    rather than padding, in units of vision patches over the whole grid.
    """

    across: int
    down: int
    rows: Span
    columns: Span

    @property
    def tiles(self) -> int:
        return self.across * self.down


def select_best_resolution(size: Size, pinpoints: tuple[Size, ...]) -> Size:
    """The pinpoint (width, height) that keeps most of the picture, then wastes least.

    Source: ``select_best_resolution`` in LLaVA's ``mm_utils.py``; the first of equals wins.
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
    """The (width, height) that a picture takes when it is scaled into ``target``, ratio kept.

    Source: ``resize_and_pad_image`` in LLaVA's ``mm_utils.py``.
    """
    width, height = size
    target_width, target_height = target
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        return target_width, min(math.ceil(height * scale_width), target_height)
    return min(math.ceil(width * scale_height), target_width), target_height


def square_size(size: Size, tile_pixels: int) -> Size:
    """The (width, height) of a picture whose shorter side is scaled to ``tile_pixels``. Source: CLIP's processor."""
    width, height = size
    stretched = int(tile_pixels * max(size) / min(size))
    return (tile_pixels, stretched) if width <= height else (stretched, tile_pixels)


def unpadded_spans(size: Size, grid_columns: int, grid_rows: int) -> tuple[Span, Span]:
    """(rows, columns) of a feature grid that hold picture, the padding left out.

    Source: ``unpad_image`` in LLaVA's ``llava_arch.py``, its integer truncation included.
    """
    width, height = size
    if width / height > grid_columns / grid_rows:
        kept = int(height * (grid_columns / width))
        padding = (grid_rows - kept) // 2
        return Span(padding, grid_rows - padding), Span(0, grid_columns)
    kept = int(width * (grid_rows / height))
    padding = (grid_columns - kept) // 2
    return Span(0, grid_rows), Span(padding, grid_columns - padding)


def tile_grid(size: Size, pinpoints: tuple[Size, ...], tile_pixels: int, patch_pixels: int) -> TileGrid:
    """The grid that an any-res picture is cut into, and which of its features are picture."""
    width, height = select_best_resolution(size, pinpoints)
    across, down = width // tile_pixels, height // tile_pixels
    side = tile_pixels // patch_pixels
    rows, columns = unpadded_spans(size, across * side, down * side)
    return TileGrid(across, down, rows, columns)


def transformers_grid(size: Size, pinpoints: tuple[Size, ...], tile_pixels: int, patch_pixels: int) -> TileGrid:
    """``tile_grid`` as transformers computes it: pinpoints read as (height, width), sizes rounded to 7 digits."""
    mirrored = tuple((width, height) for height, width in pinpoints)
    width, height = select_best_resolution(size, mirrored)
    across, down = width // tile_pixels, height // tile_pixels
    side = tile_pixels // patch_pixels
    rows, columns = transformers_spans(size, across * side, down * side)
    return TileGrid(across, down, rows, columns)


def merged_tokens(grid: TileGrid, tile_tokens: int, merge: PatchMerge) -> int:
    """Image tokens of a 1.6 picture: its base tile, then its grid. Source: ``prepare_inputs_labels_for_multimodal``.

    ``spatial_unpad`` drops the padding and ends each row with a newline token; ``spatial`` (row by row over the
    whole grid) and ``flat`` (tile by tile) keep every feature and add none.
    """
    if merge == "spatial_unpad":
        return tile_tokens + len(grid.rows) * (len(grid.columns) + 1)
    return tile_tokens * (1 + grid.tiles)


def size_for_transformers(size: Size, pinpoints: tuple[Size, ...], tile_pixels: int, patch_pixels: int) -> Size:
    """The (width, height) to tell the engine's model, so that it takes LLaVA's own grid and unpadding.

    The model chooses both once more from a size that it is given, by transformers' functions. Those read
    pinpoints as (height, width); the engine is given them mirrored, which cures that. What is left is a rounding:
    transformers rounds to 7 digits before it truncates. The picture's own size is used where both agree, else
    one a hair beside it. Raises ValueError where there is none (none is known).
    """
    wanted = tile_grid(size, pinpoints, tile_pixels, patch_pixels)
    side = tile_pixels // patch_pixels
    width, height = size
    for scale in (1, 1000):
        for wider, taller in ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0)):
            candidate = (width * scale + wider, height * scale + taller)
            if min(candidate) < 1:
                continue
            chosen = select_best_resolution(candidate, pinpoints)
            spans = transformers_spans(candidate, wanted.across * side, wanted.down * side)
            if chosen == (wanted.across * tile_pixels, wanted.down * tile_pixels) and spans == (
                wanted.rows,
                wanted.columns,
            ):
                return candidate
    raise ValueError(f"no size makes transformers choose LLaVA's grid for {size}")


def transformers_spans(size: Size, grid_columns: int, grid_rows: int) -> tuple[Span, Span]:
    """``unpadded_spans`` as transformers computes it."""
    width, height = size
    if width / height > grid_columns / grid_rows:
        kept = int(round(height * (grid_columns / width), 7))
        padding = (grid_rows - kept) // 2
        return Span(padding, grid_rows - padding), Span(0, grid_columns)
    kept = int(round(width * (grid_rows / height), 7))
    padding = (grid_columns - kept) // 2
    return Span(0, grid_rows), Span(padding, grid_columns - padding)
