"""The vision families and image modes, one record each.

To add a family of this shape, add its record to ``FAMILIES`` and its class to ``engine/vllm_models.py``. If it fits
images into tiles in a new way, add a layout to ``LAYOUTS`` and its pixels to ``images/pixels.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from llava_api.vision.geometry import (
    PatchMerge,
    Pinpoints,
    Size,
    TileGrid,
    fit_within,
    merged_tokens,
    square_size,
    tile_grid,
    transformers_grid,
)

LayoutName = Literal["pad", "square", "anyres", "hf"]


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """How an image is fitted into a model's tiles: an image mode, named after LLaVA's ``image_aspect_ratio``."""

    name: LayoutName
    description: str
    """For the chat page."""
    tile_size: Callable[[Size, int], Size] | None
    """(image size, tile side) -> the size an image is scaled to for one tile; None if the checkpoint's own image
    processor decides."""
    grid: Callable[[Size, Pinpoints, int, int], TileGrid] | None = None
    """Chooses a grid if the checkpoint has pinpoints; None if the image is always one tile."""
    needs_grid: bool = False
    """Whether only a family with grids can be shown images this way."""
    crops: bool = False
    """Whether one tile shows the middle of the image rather than all of it with padding."""
    mirrors_pinpoints: bool = True
    """Whether pinpoints are (width, height), as LLaVA reads them; transformers and vLLM read (height, width)."""


PAD = ImageLayout("pad", "padded to a square (the grey part)", lambda size, tile: fit_within(size, (tile, tile)))
SQUARE = ImageLayout("square", "scaled, its middle cut out", square_size, crops=True)
ANYRES = ImageLayout(
    "anyres", "a grid of tiles (black is padding)", lambda _, tile: (tile, tile), grid=tile_grid, needs_grid=True
)
HF = ImageLayout(
    "hf",
    "as the checkpoint's own processor does it",
    None,
    grid=transformers_grid,
    crops=True,
    mirrors_pinpoints=False,
)
LAYOUTS: dict[str, ImageLayout] = {layout.name: layout for layout in (PAD, SQUARE, ANYRES, HF)}


@dataclass(frozen=True, slots=True)
class VisionFamily:
    """One generation of LLaVA."""

    version: str
    """The part of its name after ``LLaVA-``."""
    architecture: str
    """In the hub's config.json."""
    model_type: str
    """In the hub's config.json."""
    processor_class: str
    image_processor_type: str
    """In the hub's preprocessor_config.json."""
    engine_architecture: str
    """The name under which our model is registered with vLLM, so that vLLM's own model keeps the hub's name."""
    engine_class: str
    """Our model's class in ``engine/vllm_models.py``."""
    layout: ImageLayout
    """What LLaVA's authors trained it with."""
    prompt_families: Mapping[str, str]
    """Text model -> prompt family, for text models other than Llama that LLaVA's authors trained it on."""
    tower: str = "clip_vision_model"
    """``model_type`` of the vision tower that LLaVA's authors trained it with."""
    tiled: bool = False
    """Whether its model takes a list of tiles with the image's size, chooses a grid among pinpoints, merges the tiles'
    features (``mm_patch_merge_type``) and has a newline token (``image_newline``)."""
    grid_tokens: Callable[[TileGrid, int, PatchMerge], int] = merged_tokens
    """(grid, tokens of one tile, merge type) -> image tokens of a base tile and its grid."""

    def __str__(self) -> str:
        return f"LLaVA-{self.version}"


LLAVA_1_5 = VisionFamily(
    version="1.5",
    architecture="LlavaForConditionalGeneration",
    model_type="llava",
    processor_class="LlavaProcessor",
    image_processor_type="CLIPImageProcessor",
    engine_architecture="LlavaApiForConditionalGeneration",
    engine_class="Llava",
    layout=PAD,
    prompt_families={},
)
LLAVA_1_6 = VisionFamily(
    version="1.6",
    architecture="LlavaNextForConditionalGeneration",
    model_type="llava_next",
    processor_class="LlavaNextProcessor",
    image_processor_type="LlavaNextImageProcessor",
    engine_architecture="LlavaApiNextForConditionalGeneration",
    engine_class="LlavaNext",
    layout=ANYRES,
    prompt_families={"mistral": "mistral_instruct", "qwen2": "qwen_1_5"},
    tiled=True,
)
FAMILIES = (LLAVA_1_5, LLAVA_1_6)
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}


def family_of_original(image_aspect_ratio: str | None) -> VisionFamily:
    """The family of a checkpoint in LLaVA's original format, whose config.json does not name it."""
    return next((family for family in FAMILIES if family.layout.name == image_aspect_ratio), LLAVA_1_5)


CLASSIC_NAMES = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""Prefixes of weight names in transformers 4.52 and later -> before, which vLLM reads. All families share them."""
PROJECTOR = "multi_modal_projector"
"""The module that an adapter may hold whole (PEFT's ``modules_to_save``): LLaVA's fine-tuning trains it, too."""
TOWER, INNER_TOWER = "vision_tower.", "vision_tower.vision_model."


def classic_name(name: str) -> str:
    """The name that vLLM reads of a tensor in a hub-format checkpoint, whichever transformers wrote it.

    ``save_pretrained`` of transformers 5.19 leaves out CLIP's and SigLIP's inner ``vision_model``.
    """
    name = renamed(name, CLASSIC_NAMES) or name
    if name.startswith(TOWER) and not name.startswith(INNER_TOWER):
        return INNER_TOWER + name.removeprefix(TOWER)
    return name


def renamed(name: str, prefixes: tuple[tuple[str, str], ...]) -> str | None:
    """``name`` with the first prefix that fits replaced; None if none fits."""
    return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), None)
