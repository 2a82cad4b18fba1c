"""A folder or a hub id -> what the checkpoint is: format, vision family, tile geometry, tokenizer facts.

Reads only small files: a folder with config and tokenizer is enough.
"""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llava_api.checkpoints import original, tokenizer_files
from llava_api.checkpoints.adapters import check_projector
from llava_api.checkpoints.files import locate, read_json, weight_files
from llava_api.checkpoints.gguf_pair import GgufPair, find_text, read_pair
from llava_api.checkpoints.towers import Tower, find_tower
from llava_api.checkpoints.whole import embedding_rows
from llava_api.errors import StartupError
from llava_api.vision.families import BY_ARCHITECTURE, VisionFamily

LARGEST_NUMBER = 2**31
LARGEST_TILE = 4096
"""Pixels; the largest towers in use have under 1,000."""
TOWERS_WITH_CLASS_TOKEN = ("clip_vision_model",)
Triple = tuple[float, float, float]
Format = Literal["hub", "original", "original LoRA", "GGUF"]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a checkpoint and its parts come from."""

    revision: str | None = None
    """Branch, tag or commit of a checkpoint from the hub."""
    download_dir: str | None = None
    """Folder for what is fetched from the hub; None for the hub library's own cache."""
    model_base: str | None = None
    """Folder or hub id of the model that an original LoRA was trained on."""
    vision_tower: str | None = None
    """Folder or hub id of the vision tower, instead of an original checkpoint's ``mm_vision_tower``."""
    mmproj: str | None = None
    """File of a GGUF checkpoint's vision half, instead of the one beside its text model."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    model: str
    """The folder or hub id that the engine loads."""
    folder: Path
    """The folder with config.json and the tokenizer's files."""
    format: Format
    vision: VisionFamily
    config: dict[str, Any] = field(repr=False)
    """config.json in the hub's format, also for an original checkpoint."""
    tower: Tower | None = field(repr=False)
    """None for the hub's format."""
    tokenizer_json: str = field(repr=False)
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None = field(repr=False)
    text_model_type: str
    image_token_id: int
    tile_pixels: int
    patch_pixels: int
    tile_tokens: int
    """Image tokens of one tile."""
    own_tower: bool
    """Whether the vision tower is of the kind that its family was trained with, for which LLaVA's layouts are made."""
    pinpoints: tuple[tuple[int, int], ...]
    """Pairs as config.json lists them; empty for a family without grids."""
    aspect_ratio: str | None
    """LLaVA's ``image_aspect_ratio``; None if the checkpoint lost it."""
    says_aspect_ratio: bool
    """Whether it is in config.json; LLaVA's code has a default."""
    merge: str | None
    """LLaVA's ``mm_patch_merge_type``; None if the checkpoint lost it."""
    image_markers: bool
    """LLaVA's ``mm_use_im_start_end``."""
    processor: dict[str, Any] = field(repr=False)
    """preprocessor_config.json; empty if there is none."""
    image_mean: Triple | None
    """Per channel, in units of 0..1; None if the checkpoint does not say."""
    image_std: Triple | None
    eos_token_ids: tuple[int, ...]
    stored_dtype: str | None
    """Type of its weights, if its config says so."""
    context_length: int
    """Longest prompt plus answer that the text model was made for."""
    quantization: str | None
    """Quantization method that its config names."""
    default_temperature: float
    """0 if generation_config.json has do_sample false, else its temperature, else 1."""
    default_top_p: float
    gguf: GgufPair | None = None
    """The files of format GGUF."""


def inspect_checkpoint(model: str, sources: Sources | None = None) -> Checkpoint:
    """Read a checkpoint's small files. Raises StartupError for one that cannot be served."""
    sources = sources or Sources()
    text = find_text(model)
    try:
        if text is not None:
            return inspect_gguf(model, read_pair(text, sources.mmproj), sources)
        return inspect_folder(model, locate(model, sources.download_dir, sources.revision), sources)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        # A file is damaged or of another origin: a value does not have the type that every checkpoint has there.
        raise StartupError(
            f"the checkpoint's config or tokenizer files cannot be understood ({type(error).__name__}: {error})"
        ) from error


def inspect_gguf(model: str, pair: GgufPair, sources: Sources) -> Checkpoint:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, content in pair.small_files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        made = inspect_folder(model, folder, sources)
    return replace(made, folder=pair.text.parent, format="GGUF", gguf=pair)


def inspect_folder(model: str, folder: Path, sources: Sources) -> Checkpoint:
    config = read_json(folder, "config.json")
    lora = (folder / "adapter_config.json").is_file()
    if not config and lora:
        raise StartupError(NO_CONFIG_BESIDE_LORA)
    if not config:
        raise StartupError(
            "the checkpoint has no config.json (GGUF files: download them and give the path of a *.gguf)"
        )
    if original.is_original(config):
        return inspect_original(model, folder, config, sources, "original LoRA" if lora else "original")
    family_of(config)
    tokenizer = tokenizer_files.load_tokenizer(folder)
    check_hub(config, folder, tokenizer)
    return describe(model, folder, config, "hub", None, tokenizer, folder)


def check_hub(config: dict[str, Any], folder: Path, tokenizer: tokenizer_files.Tokenizer) -> None:
    """Raises StartupError if config.json does not fit weights or tokenizer, which the engine finds out only late."""
    rows, vocabulary = embedding_rows(folder), (config.get("text_config") or {}).get("vocab_size")
    if rows is not None and type(vocabulary) is int and rows != vocabulary:
        raise StartupError(
            f"config.json says text_config.vocab_size {vocabulary}, and the checkpoint's embedding has {rows} rows: "
            f"set it to {rows}"
        )
    said = config.get("image_token_index", config.get("image_token_id"))
    image_token = word(read_json(folder, "processor_config.json"), "image_token") or "<image>"
    known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}.get(image_token)
    if type(said) is int and known is not None and said != known:
        beyond = f", beyond the vocabulary of {vocabulary}" if type(vocabulary) is int and said >= vocabulary else ""
        raise StartupError(
            f"config.json says image_token_index {said}{beyond}, and the checkpoint's tokenizer has {image_token} at "
            f"{known}: set it to {known}"
        )


NO_CONFIG_BESIDE_LORA = (
    "this folder is a LoRA adapter without LLaVA's config.json: serve its base model and add --lora name=folder, or, "
    "for an adapter made with LLaVA's own training code, put its config.json beside it"
)


PROJECTOR = "mm_projector.bin"
PROJECTOR_ALONE = (
    f"this folder holds a projector alone ({PROJECTOR}), which the first stage of LLaVA's training writes; it is not "
    "served by itself: serve the checkpoint of the second stage, which holds the projector too"
)


def inspect_original(model: str, folder: Path, config: dict[str, Any], sources: Sources, kind: Format) -> Checkpoint:
    if kind == "original" and (folder / PROJECTOR).is_file() and not weight_files(folder):
        raise StartupError(PROJECTOR_ALONE)
    if kind == "original LoRA":
        check_projector(folder)
    if kind == "original LoRA" and sources.model_base is None:
        named = read_json(folder, "adapter_config.json").get("base_model_name_or_path") or "its config does not say"
        raise StartupError(f"the checkpoint is a LoRA: name the model it was trained on with --model-base ({named})")
    tokenizer_folder = folder
    if sources.model_base is not None and not has_tokenizer(folder):
        # As in the original, a LoRA without a tokenizer has its base model's.
        tokenizer_folder = locate(sources.model_base, sources.download_dir)
    original.check(config)
    tower = find_tower(original.named_tower(config), folder, sources.vision_tower, sources.download_dir)
    tokenizer, image_token_id = tokenizer_files.with_image_token(tokenizer_files.load_tokenizer(tokenizer_folder))
    hub = original.as_hub_config(config, tower, image_token_id)
    made = describe(model, folder, hub, kind, tower, tokenizer, tokenizer_folder)
    return replace(made, says_aspect_ratio=config.get("image_aspect_ratio") is not None)


def family_of(config: dict[str, Any]) -> VisionFamily:
    """Raises StartupError for an architecture that is no LLaVA in the hub's format."""
    architecture = original.architecture(config)
    family = BY_ARCHITECTURE.get(architecture)
    if family is None:
        known = ", ".join((*BY_ARCHITECTURE, *original.TEXT_MODELS))
        raise StartupError(f"the checkpoint's architecture is {architecture}; llava-api serves {known}")
    return family


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def describe(
    model: str,
    folder: Path,
    config: dict[str, Any],
    kind: Format,
    tower: Tower | None,
    tokenizer: tokenizer_files.Tokenizer,
    tokenizer_folder: Path,
) -> Checkpoint:
    """A checkpoint from its config in the hub's format."""
    family = family_of(config)
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    generation = read_json(folder, "generation_config.json")
    processor = original.processor_files(config)["preprocessor_config.json"] if tower else processor_config(folder)
    settings = tokenizer_files.tokenizer_settings(tokenizer_folder)
    eos = generation.get("eos_token_id", text.get("eos_token_id", 2))
    tower_type = vision.get("model_type", family.tower)
    class_token = tower_type in TOWERS_WITH_CLASS_TOKEN
    tile, patch = tile_geometry(vision)
    points = original.check_pinpoints(config.get("image_grid_pinpoints"), tile) if family.tiled else []
    greedy = generation.get("do_sample") is False
    quantization = config.get("quantization_config") or text.get("quantization_config") or {}
    return Checkpoint(
        model=model,
        folder=folder,
        format=kind,
        vision=family,
        config=config,
        tower=tower,
        tokenizer_json=json.dumps(tokenizer),
        bos_token=tokenizer_files.bos_token(settings, tokenizer),
        eos_token=tokenizer_files.token_text(settings.get("eos_token")),
        chat_template=tokenizer_files.chat_template(tokenizer_folder, settings),
        text_model_type=word(text, "model_type") or "llama",
        image_token_id=whole_number(config, "image_token_index", config.get("image_token_id", 32000), least=0),
        tile_pixels=tile,
        patch_pixels=patch,
        tile_tokens=tile_tokens(tile // patch, class_token, config.get("vision_feature_select_strategy", "default")),
        own_tower=tower_type == family.tower,
        pinpoints=tuple(points),
        aspect_ratio=word(config, "image_aspect_ratio"),
        says_aspect_ratio=config.get("image_aspect_ratio") is not None,
        merge=word(config, "mm_patch_merge_type"),
        image_markers=bool(config.get("mm_use_im_start_end", False)),
        processor=processor,
        image_mean=triple(processor.get("image_mean")),
        image_std=triple(processor.get("image_std")),
        eos_token_ids=end_tokens(eos),
        stored_dtype=config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype"),
        context_length=context_length(text),
        quantization=quantization.get("quant_method"),
        default_temperature=0.0 if greedy else float(generation.get("temperature") or 1.0),
        default_top_p=float(generation.get("top_p") or 1.0),
    )


def tile_tokens(side: int, class_token: bool, strategy: str) -> int:
    """Features that the model makes of one tile. ``default`` leaves out the first, which is CLIP's class token."""
    return side * side + (1 if class_token else 0) - (1 if strategy == "default" else 0)


def context_length(text: dict[str, Any]) -> int:
    """``max_position_embeddings``, extended if the checkpoint's RoPE is scaled, as vLLM computes it."""
    length = whole_number(text, "max_position_embeddings", 2048, least=1)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return int(length * float(rope.get("factor") or 1)) if kind in ("linear", "dynamic") else length


def processor_config(folder: Path) -> dict[str, Any]:
    """Settings of the image processor, from the file of current or of older transformers."""
    found = read_json(folder, "preprocessor_config.json") or read_json(folder, "processor_config.json").get(
        "image_processor"
    )
    return found if isinstance(found, dict) else {}


def whole_number(settings: dict[str, Any], name: str, default: int, least: int) -> int:
    """A number in a config. Raises StartupError if it is no whole number, or too large for any model."""
    value = settings.get(name)
    value = default if value is None else value
    if type(value) is not int or not least <= value <= LARGEST_NUMBER:
        raise StartupError(f"the checkpoint's config.json has an impossible {name}")
    return value


def word(settings: dict[str, Any], name: str) -> str | None:
    """A name in a config. Raises StartupError if it is something else."""
    value = settings.get(name)
    if value is not None and not isinstance(value, str):
        raise StartupError(f"the checkpoint's config.json has a {name} that is no name")
    return value


def tile_geometry(vision: dict[str, Any]) -> tuple[int, int]:
    """(side of a tile, side of a patch) in pixels. Raises StartupError if they are impossible."""
    tile = whole_number(vision, "image_size", 336, least=1)
    patch = whole_number(vision, "patch_size", 14, least=1)
    if patch > tile or tile > LARGEST_TILE:
        raise StartupError(f"the checkpoint's config.json has tiles of {tile} px and patches of {patch} px")
    return tile, patch


def end_tokens(value: object) -> tuple[int, ...]:
    """``eos_token_id``: one, several, or none. Raises StartupError for anything else."""
    several = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in several):
        raise StartupError("the checkpoint's eos_token_id is no token id")
    return tuple(several)


def triple(values: object) -> Triple | None:
    if isinstance(values, list) and len(values) == 3:
        return (float(values[0]), float(values[1]), float(values[2]))
    return None
