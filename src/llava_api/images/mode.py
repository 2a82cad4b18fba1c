"""How a checkpoint is shown its pictures: the mode, and what a picture of a given size becomes in it.

Everything here follows from width and height; no picture is opened.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llava_api.images.geometry import (
    PatchMerge,
    Size,
    TileGrid,
    fit_within,
    merged_tokens,
    select_best_resolution,
    size_for_transformers,
    square_size,
    tile_grid,
    transformers_grid,
)
from llava_api.normalisation import Normalisation

if TYPE_CHECKING:
    from llava_api.images.hub_processor import HubProcessor

ModeName = Literal["pad", "square", "anyres", "hf"]
Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class ImageMode:
    """One way from a picture to pixels. ``pad`` and ``square`` make one tile of it, ``anyres`` a grid.

    ``hf`` leaves the pixels to the checkpoint's own image processor and counts as transformers counts.
    """

    name: ModeName
    tile_pixels: int
    patch_pixels: int
    tile_tokens: int
    """Image tokens of one tile."""
    normalisation: Normalisation
    pinpoints: tuple[Size, ...] = ()
    """Grids to choose from, as the checkpoint's config lists them; empty for LLaVA-1.5."""
    merge: PatchMerge = "spatial_unpad"
    upright: bool = True
    """Turn the picture by its EXIF orientation; LLaVA's own code does not."""
    on_white: bool = True
    """Show white under transparency; LLaVA's own code drops the transparency and shows what lies under it."""
    hub_processor: "HubProcessor | None" = None
    """For ``hf``."""
    base_alone: bool = False
    """``detail: low`` of a tiled mode: the base tile, without the grid."""

    def tiled(self) -> bool:
        """Whether pictures are tiles, (1 + tiles, 3, S, S), of which the first is the whole picture."""
        return self.name == "anyres" or (self.name == "hf" and bool(self.pinpoints))

    def at(self, detail: Detail | None) -> "ImageMode":
        """The mode for a picture's ``detail``; ``auto`` is ``high``, and one tile is one tile."""
        return replace(self, base_alone=True) if detail == "low" and self.tiled() else self

    def grid(self, size: Size) -> TileGrid | None:
        """The tile grid of a picture of ``size``; None where it is one tile."""
        if not self.tiled() or self.base_alone:
            return None
        choose = tile_grid if self.name == "anyres" else transformers_grid
        return choose(size, self.pinpoints, self.tile_pixels, self.patch_pixels)

    def tokens(self, size: Size) -> int:
        """Image tokens of a picture of ``size``: the features that the model makes of it."""
        grid = self.grid(size)
        if grid is not None:
            return merged_tokens(grid, self.tile_tokens, self.merge)
        # A base tile alone is one row, and unpadded rows end with a newline token.
        return self.tile_tokens + int(self.base_alone and self.merge == "spatial_unpad")

    def needed(self, size: Size) -> Size | None:
        """The (width, height) that a picture of ``size`` is scaled to; None where that is not for us to know."""
        tile = (self.tile_pixels, self.tile_pixels)
        if self.name == "hf":
            return None
        if self.name == "pad":
            return fit_within(size, tile)
        if self.name == "square":
            return square_size(size, self.tile_pixels)
        if self.base_alone:
            return tile
        width, height = fit_within(size, select_best_resolution(size, self.pinpoints))
        return max(width, tile[0]), max(height, tile[1])

    def engine_size(self, size: Size) -> Size | None:
        """What a LLaVA-1.6 model is told of a picture's size, from which it takes grid and unpadding once more.

        None for 1.5, which is told nothing. See ``size_for_transformers``.
        """
        if not self.pinpoints:
            return None
        if self.base_alone:
            return self.tile_pixels, self.tile_pixels
        if self.name == "anyres" and self.merge == "spatial_unpad":
            return size_for_transformers(size, self.pinpoints, self.tile_pixels, self.patch_pixels)
        return size

    def engine_pinpoints(self) -> tuple[Size, ...]:
        """Pinpoints as (height, width), the order in which the engine's model reads them.

        LLaVA reads its config's as (width, height), so they are mirrored, but for ``hf``, which wants
        transformers' own reading.
        """
        if self.name == "hf":
            return self.pinpoints
        return tuple((height, width) for width, height in self.pinpoints)

    def engine_merge(self) -> PatchMerge:
        """How the engine's model is to merge tiles: a single tile without a grid takes no newline token."""
        return self.merge if self.tiled() else "flat"

    def key(self) -> str:
        """Everything besides a file's bytes that decides about its pixels."""
        switches = f"{self.upright:d}{self.on_white:d}{self.base_alone:d}"
        return f"{self.name}-{self.tile_pixels}-{self.merge}-{switches}"
