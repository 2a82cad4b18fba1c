"""How the served checkpoint is shown images, and what an image of a given size becomes.

Everything here follows from width and height; no image is opened.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llava_api.vision.families import LAYOUTS, ImageLayout, LayoutName
from llava_api.vision.geometry import (
    PatchMerge,
    Pinpoints,
    Size,
    TileGrid,
    fit_within,
    merged_tokens,
    mirrored,
    size_for_transformers,
)
from llava_api.vision.normalisation import Normalisation

if TYPE_CHECKING:
    from llava_api.images.hub_processor import HubProcessor

Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class ImageMode:
    """A layout with the checkpoint's sizes and the operator's switches."""

    name: LayoutName
    tile_pixels: int
    patch_pixels: int
    tile_tokens: int
    """Image tokens of one tile."""
    normalisation: Normalisation
    pinpoints: Pinpoints = ()
    """Grids to choose from, as the checkpoint's config lists them; empty if the family has no grids."""
    merge: PatchMerge = "spatial_unpad"
    upright: bool = True
    """Turn the image by its EXIF orientation; LLaVA's own code does not."""
    on_white: bool = True
    """Show white under transparency; LLaVA's own code drops the transparency and shows what lies under it."""
    hub_processor: "HubProcessor | None" = None
    """The checkpoint's own image processor, for layout ``hf``."""
    base_only: bool = False
    """``detail: low`` of a tiled mode: the base tile without the grid."""
    grid_tokens: Callable[[TileGrid, int, PatchMerge], int] = merged_tokens
    """Counts the tokens of a grid, as the vision family does."""

    @property
    def layout(self) -> ImageLayout:
        return LAYOUTS[self.name]

    def tiled(self) -> bool:
        """Whether images are tiles, (1 + tiles, 3, S, S), of which the first is the whole image."""
        return self.layout.grid is not None and bool(self.pinpoints)

    def at(self, detail: Detail | None) -> "ImageMode":
        """The mode for an image's ``detail``. ``auto`` is ``high``; detail changes nothing if an image is one tile."""
        return replace(self, base_only=True) if detail == "low" and self.tiled() else self

    def grid(self, size: Size) -> TileGrid | None:
        """The tile grid of an image of ``size``; None if it is one tile."""
        if self.layout.grid is None or not self.pinpoints or self.base_only:
            return None
        return self.layout.grid(size, self.pinpoints, self.tile_pixels, self.patch_pixels)

    def tokens(self, size: Size) -> int:
        """Image tokens of an image of ``size``, which is the number of features that the model makes of it."""
        grid = self.grid(size)
        if grid is not None:
            return self.grid_tokens(grid, self.tile_tokens, self.merge)
        # A base tile without a grid is one row, and unpadded rows end with a newline token.
        return self.tile_tokens + int(self.base_only and self.merge == "spatial_unpad")

    def needed(self, size: Size) -> Size | None:
        """The (width, height) that an image of ``size`` is scaled to; None if the checkpoint's processor decides."""
        if self.layout.tile_size is None:
            return None
        tile = self.layout.tile_size(size, self.tile_pixels)
        grid = self.grid(size)
        if grid is None:
            return tile
        width, height = fit_within(size, (grid.across * self.tile_pixels, grid.down * self.tile_pixels))
        return max(width, tile[0]), max(height, tile[1])

    def engine_size(self, size: Size) -> Size | None:
        """The image size that the engine's model is given, from which it computes grid and unpadding again.

        None for a family without grids. See ``size_for_transformers``.
        """
        if not self.pinpoints:
            return None
        if self.base_only:
            return self.tile_pixels, self.tile_pixels
        if self.layout.needs_grid and self.merge == "spatial_unpad":
            return size_for_transformers(size, self.pinpoints, self.tile_pixels, self.patch_pixels)
        return size

    def engine_pinpoints(self) -> Pinpoints:
        """Pinpoints as (height, width), the order in which the engine's model reads them."""
        return mirrored(self.pinpoints) if self.layout.mirrors_pinpoints else self.pinpoints

    def engine_merge(self) -> PatchMerge:
        """How the engine's model merges tiles: a single tile without a grid takes no newline token."""
        return self.merge if self.tiled() else "flat"

    def key(self) -> str:
        """Everything besides a file's bytes that decides its pixels."""
        switches = f"{self.upright:d}{self.on_white:d}{self.base_only:d}"
        return f"{self.name}-{self.tile_pixels}-{self.merge}-{switches}"
