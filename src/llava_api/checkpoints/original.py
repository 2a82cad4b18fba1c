"""The original format (``liuhaotian/*`` and fine-tunes made with LLaVA's own training code) -> the hub's config.

Reads only config.json; ``convert`` handles the weights. Source: ``llava/model/builder.py``, ``llava_arch.py`` beside
it, and ``llava/model/multimodal_projector/builder.py`` of the original code.
"""

import ast
import re
from typing import Any

from llava_api.checkpoints.hub_files import clip_processor, hub_config
from llava_api.checkpoints.towers import Tower
from llava_api.errors import StartupError
from llava_api.vision.families import BY_ARCHITECTURE, HF, LAYOUTS, family_of_original

Config = dict[str, Any]

TEXT_MODELS = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
TEXT_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
NOT_TEXT = ("mm_", "image_", "tune_", "freeze_", "unfreeze_", "tokenizer_", "use_mm_", "_", "vision_")
NOT_TEXT_NAMES = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "auto_map",
    "hidden_size_vision",
)
"""Settings that do not belong to the text model: by the beginnings of their names, and by name."""
PROJECTORS = ("linear", "mlp2x_gelu")
TRAINED_LAYOUTS = tuple(name for name in LAYOUTS if name != HF.name)
MERGES = ("flat", "spatial", "spatial_unpad")
RANGE = re.compile(r"\((\d{1,3})x(\d{1,3})\)")
MOST_TILES = 36
"""Tiles in a row of a grid; LLaVA's authors used up to 6."""
ROUND_ROWS_TO = 64
"""The embedding is padded to a multiple of this, as by transformers' conversion script."""


def is_original(config: Config) -> bool:
    return architecture(config) in TEXT_MODELS


def architecture(config: Config) -> str:
    """``architectures``, or what ``model_type`` says without it, as transformers reads it."""
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    hub_types = {family.model_type: name for name, family in BY_ARCHITECTURE.items()}
    return hub_types.get(str(config.get("model_type")), "none")


def check(config: Config) -> None:
    """Raises StartupError for settings that have no counterpart in the hub's models."""
    wanted: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("mm_projector_type", config.get("mm_projector_type", "linear"), PROJECTORS),
        ("mm_vision_select_feature", config.get("mm_vision_select_feature", "patch"), ("patch",)),
        ("mm_resampler_type", config.get("mm_resampler_type"), (None,)),
        ("mm_patch_merge_type", config.get("mm_patch_merge_type", "flat"), MERGES),
        ("image_aspect_ratio", config.get("image_aspect_ratio"), (None, *TRAINED_LAYOUTS)),
    ]
    for name, value, known in wanted:
        if value not in known:
            spelled = ", ".join(str(option) for option in known if option is not None) or "none"
            raise StartupError(f"the checkpoint has {name} {value}; llava-api knows {spelled}")
    if not named_tower(config):
        raise StartupError("the checkpoint's config.json names no vision tower (mm_vision_tower)")


def named_tower(config: Config) -> str:
    return str(config.get("mm_vision_tower") or config.get("vision_tower") or "")


def pinpoints(config: Config, tile_pixels: int) -> list[list[int]]:
    """``image_grid_pinpoints`` as a list. Raises StartupError if there are none."""
    value = config.get("image_grid_pinpoints")
    if value is None:
        raise StartupError(
            f"the checkpoint's config.json has image_aspect_ratio {config.get('image_aspect_ratio')} and no "
            "image_grid_pinpoints"
        )
    return [list(point) for point in check_pinpoints(parsed_pinpoints(value, tile_pixels), tile_pixels)]


def parsed_pinpoints(value: object, tile_pixels: int) -> object:
    """Pinpoints as a list; LLaVA's training code also takes them as text, and reads it like this."""
    if not isinstance(value, str):
        return value
    corners = [(int(across), int(down)) for across, down in RANGE.findall(value)]
    if corners:
        (first, top), (last, bottom) = corners[0], corners[-1]
        if max(last, bottom) > MOST_TILES:
            return value
        grids = [(across, down) for across in range(first, last + 1) for down in range(top, bottom + 1)]
        return [[across * tile_pixels, down * tile_pixels] for across, down in grids]
    try:
        return [list(point) for point in ast.literal_eval(value)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def check_pinpoints(value: object, tile_pixels: int) -> list[tuple[int, int]]:
    """Pairs of positive multiples of the tile. Raises StartupError for anything else."""
    if not isinstance(value, list) or not value:
        raise StartupError("the checkpoint's image_grid_pinpoints are no list of pairs")
    points: list[tuple[int, int]] = []
    for point in value:
        if not (isinstance(point, list | tuple) and len(point) == 2 and all(type(side) is int for side in point)):
            raise StartupError("the checkpoint's image_grid_pinpoints are no list of pairs of whole numbers")
        if any(side < tile_pixels or side % tile_pixels or side > MOST_TILES * tile_pixels for side in point):
            raise StartupError(
                f"the checkpoint's image_grid_pinpoints must be 1 to {MOST_TILES} times its tiles of {tile_pixels} px"
            )
        points.append((point[0], point[1]))
    return points


def rows_needed(vocab_size: int, image_token_id: int) -> int:
    """Rows of the embedding: unchanged if there is a row for ``<image>``, else padded as in the hub's copies."""
    if image_token_id < vocab_size:
        return vocab_size
    return -(-(image_token_id + 1) // ROUND_ROWS_TO) * ROUND_ROWS_TO


def text_config(config: Config, rows: int) -> Config:
    model_type = TEXT_MODELS[architecture(config)]
    kept = {
        name: value for name, value in config.items() if name not in NOT_TEXT_NAMES and not name.startswith(NOT_TEXT)
    }
    return {**kept, "vocab_size": rows, "model_type": model_type, "architectures": [TEXT_ARCHITECTURES[model_type]]}


def as_hub_config(config: Config, tower: Tower, image_token_id: int) -> Config:
    """The hub's config.json of an original checkpoint, whose settings ``check`` has accepted.

    LLaVA's own settings stay in it under their own names, so that nothing about images is lost.
    """
    family = family_of_original(config.get("image_aspect_ratio"))
    rows = rows_needed(int(config.get("vocab_size", 32000)), image_token_id)
    linear = config.get("mm_projector_type", "linear") == "linear"
    kept = {
        # The original's defaults.
        "image_aspect_ratio": config.get("image_aspect_ratio") or "square",
        "mm_patch_merge_type": config.get("mm_patch_merge_type", "flat"),
        "mm_use_im_start_end": bool(config.get("mm_use_im_start_end", False)),
    }
    return {
        **hub_config(
            family,
            text=text_config(config, rows),
            vision=tower.config,
            image_token_id=image_token_id,
            pinpoints=pinpoints(config, int(tower.config["image_size"])) if family.tiled else [],
        ),
        "projector_hidden_act": "linear" if linear else "gelu",
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("torch_dtype") or config.get("dtype") or "float16",
        **kept,
    }


def processor_files(hub: Config) -> dict[str, Config]:
    """preprocessor_config.json and processor_config.json for other programs that read the converted folder."""
    return clip_processor(
        BY_ARCHITECTURE[architecture(hub)],
        hub["vision_config"]["image_size"],
        hub["vision_config"]["patch_size"],
        hub.get("image_grid_pinpoints") or [],
    )
