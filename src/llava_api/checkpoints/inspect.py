"""A folder or a hub id -> what the checkpoint is: version, tile geometry, tokenizer facts.

Reads small JSON files alone; weights are the engine's business. It must not import torch or transformers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_api.errors import StartupError

ARCHITECTURES: dict[str, Literal["1.5", "1.6"]] = {
    "LlavaForConditionalGeneration": "1.5",
    "LlavaNextForConditionalGeneration": "1.6",
}
SMALL_FILES = ("*.json", "tokenizer*", "*.model")
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    model: str
    """What the engine is asked to load: a folder or a hub id."""
    folder: Path
    """Where config.json and the tokenizer's files lie."""
    version: Literal["1.5", "1.6"]
    text_model_type: str
    image_token_id: int
    tile_pixels: int
    patch_pixels: int
    pinpoints: tuple[tuple[int, int], ...]
    """(width, height) as LLaVA reads them; empty for 1.5."""
    image_mean: Triple | None
    """Per channel, in units of 0..1; None where the checkpoint does not tell."""
    image_std: Triple | None
    bos_token: str | None
    eos_token_ids: tuple[int, ...]
    stored_dtype: str | None
    """Type of its weights, where its config tells."""
    default_temperature: float
    """0 where generation_config.json says do_sample false, else its temperature, else 1."""
    default_top_p: float


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the checkpoint; empty where the file is missing."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartupError(f"{name} of the checkpoint is not valid JSON") from error
    if not isinstance(data, dict):
        raise StartupError(f"{name} of the checkpoint is not a JSON object")
    return data


def locate(model: str, revision: str | None, download_dir: str | None) -> Path:
    """The folder with the checkpoint's small files; a hub id is fetched (those files alone)."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise StartupError(
            f"there is no folder {model}, and it is no hub id of the form owner/name: give the path of a "
            "checkpoint folder, a hub id, or no model at all for the bundled demo"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        fetched: str = snapshot_download(
            model, revision=revision, cache_dir=download_dir, allow_patterns=list(SMALL_FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StartupError(
            f"the hub has no checkpoint {model} for this machine ({type(error).__name__}): check the name, the "
            "network, and HF_TOKEN where the checkpoint is gated"
        ) from error
    return Path(fetched)


def token_text(value: object) -> str | None:
    """A special token of tokenizer_config.json, written as text or as an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def bos_token_of(folder: Path) -> str | None:
    """The BOS token if the tokenizer writes one; ``add_bos_token`` false and Qwen's null mean none.

    tokenizer.json, several MB of a real checkpoint, is read only where the small file leaves it open.
    """
    tokenizer_config = read_json(folder, "tokenizer_config.json")
    bos = token_text(tokenizer_config.get("bos_token"))
    if bos is None or tokenizer_config.get("add_bos_token") is False:
        return None
    if tokenizer_config.get("add_bos_token") is True or tokenizer_config.get("tokenizer_class", "").startswith("Llama"):
        return bos
    return bos if bos in json.dumps(read_json(folder, "tokenizer.json").get("post_processor")) else None


def triple(values: object) -> Triple | None:
    if isinstance(values, list) and len(values) == 3:
        return (float(values[0]), float(values[1]), float(values[2]))
    return None


def inspect_checkpoint(model: str, revision: str | None = None, download_dir: str | None = None) -> Checkpoint:
    """Read a checkpoint's small files. Raises StartupError, in one sentence, for what cannot be served."""
    folder = locate(model, revision, download_dir)
    config = read_json(folder, "config.json")
    if not config:
        raise StartupError("the checkpoint folder has no config.json")
    architecture = next(iter(config.get("architectures") or []), "none")
    version = ARCHITECTURES.get(architecture)
    if version is None:
        raise StartupError(
            f"the checkpoint's architecture is {architecture}; llava-api serves {' and '.join(ARCHITECTURES)}"
        )
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    generation = read_json(folder, "generation_config.json")
    processor = read_json(folder, "preprocessor_config.json")
    eos = generation.get("eos_token_id", text.get("eos_token_id", 2))
    pinpoints = config.get("image_grid_pinpoints") or [] if version == "1.6" else []
    greedy = generation.get("do_sample") is False
    return Checkpoint(
        model=model,
        folder=folder,
        version=version,
        text_model_type=text.get("model_type", "llama"),
        image_token_id=config.get("image_token_index", config.get("image_token_id", 32000)),
        tile_pixels=vision.get("image_size", 336),
        patch_pixels=vision.get("patch_size", 14),
        pinpoints=tuple((int(width), int(height)) for width, height in pinpoints),
        image_mean=triple(processor.get("image_mean")),
        image_std=triple(processor.get("image_std")),
        bos_token=bos_token_of(folder),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        stored_dtype=config.get("dtype") or config.get("torch_dtype") or text.get("dtype"),
        default_temperature=0.0 if greedy else float(generation.get("temperature") or 1.0),
        default_top_p=float(generation.get("top_p") or 1.0),
    )
