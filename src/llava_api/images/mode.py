"""How a checkpoint is shown its pictures: the mode, and what a picture of a given size becomes in it.

Everything here follows from width and height; no picture is opened.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llava_api.images.geometry import (
    PatchMerge,
    Size,
    TileGrid,
    merged_tokens,
    size_for_transformers,
    tile_grid,
    transformers_grid,
)
from llava_api.images.pixels import Normalisation

if TYPE_CHECKING:
    from llava_api.images.hub_processor import HubProcessor

ModeName = Literal["pad", "square", "anyres", "hf"]
LONGEST_RATIO = 200


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

    def tiled(self) -> bool:
        return self.name == "anyres" or (self.name == "hf" and bool(self.pinpoints))

    def grid(self, size: Size) -> TileGrid | None:
        """The tile grid of a picture of ``size``; None where it is one tile."""
        if not self.tiled():
            return None
        choose = tile_grid if self.name == "anyres" else transformers_grid
        return choose(size, self.pinpoints, self.tile_pixels, self.patch_pixels)

    def tokens(self, size: Size) -> int:
        """Image tokens of a picture of ``size``: the features that the model makes of it."""
        grid = self.grid(size)
        return self.tile_tokens if grid is None else merged_tokens(grid, self.tile_tokens, self.merge)

    def too_long(self, size: Size, max_pixels: int) -> bool:
        """Whether scaling a picture of ``size`` would cost far more than its file: a line, not a picture."""
        if self.name == "pad":
            # LLaVA pads before it scales: a file of 87 bytes can be a line 60,000 pixels long, its square 14 GB.
            return max(size) ** 2 > 2 * max_pixels
        # Beyond this a side scales to nothing, where LLaVA's own code divides by zero, or to millions of pixels.
        return max(size) > LONGEST_RATIO * min(size)

    def engine_size(self, size: Size) -> Size | None:
        """What a LLaVA-1.6 model is told of a picture's size, from which it takes grid and unpadding once more.

        None for 1.5, which is told nothing. See ``size_for_transformers``.
        """
        if not self.pinpoints:
            return None
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
        return f"{self.name}-{self.tile_pixels}-{self.merge}-{self.upright:d}{self.on_white:d}"
