"""The vision tower that an original checkpoint names (``mm_vision_tower``): its sizes and the files of its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_api.checkpoints.files import locate, read_json, weight_files
from llava_api.errors import StartupError

CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05,
}
KNOWN: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**CLIP_LARGE, "image_size": 336},
    "openai/clip-vit-large-patch14": {**CLIP_LARGE, "image_size": 224},
}
"""The towers that LLaVA's authors used, so that a checkpoint that includes its tower needs no network. Source: their
``config.json`` in the hub."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A CLIP vision tower. ``source`` is a folder or a hub id."""

    source: str
    config: dict[str, Any]
    """transformers' CLIPVisionConfig as JSON."""

    def weights(self, download_dir: str | None) -> list[Path]:
        """The files that hold its weights. Raises StartupError if they are not found."""
        try:
            found = weight_files(locate(self.source, download_dir, weights=True))
        except StartupError as error:
            raise StartupError(missing(self.source)) from error
        if not found:
            raise StartupError(missing(self.source))
        return found


def missing(source: str) -> str:
    return (
        f"the checkpoint's vision tower {source} (mm_vision_tower) is not here and cannot be fetched: give the folder "
        "of its weights with --vision-tower"
    )


def find_tower(named: str, checkpoint_folder: Path, override: str | None, download_dir: str | None) -> Tower:
    """The tower that ``mm_vision_tower`` or ``--vision-tower`` names. Raises StartupError if its sizes are unknown.

    A path on the machine that trained the checkpoint is also looked for beside the checkpoint, and by its name among
    the towers that LLaVA's authors used.
    """
    wanted = override or named
    for folder in (Path(wanted).expanduser(), checkpoint_folder / wanted, checkpoint_folder.parent / Path(wanted).name):
        if (folder / "config.json").is_file():
            return Tower(str(folder), vision_config(read_json(folder, "config.json"), wanted))
    for source, config in KNOWN.items():
        if wanted == source or Path(wanted).name == Path(source).name:
            return Tower(source, config)
    try:
        folder = locate(wanted, download_dir)
    except StartupError as error:
        raise StartupError(missing(wanted)) from error
    return Tower(wanted, vision_config(read_json(folder, "config.json"), wanted))


def vision_config(config: dict[str, Any], source: str) -> dict[str, Any]:
    """The vision half of a CLIP's config.json. Raises StartupError for other towers."""
    if config.get("model_type") == "clip":
        config = {**(config.get("vision_config_dict") or {}), **(config.get("vision_config") or {})}
    elif config.get("model_type") != "clip_vision_model":
        raise StartupError(
            f"the checkpoint's vision tower {source} is {config.get('model_type', 'unknown')}; in the original format "
            "llava-api reads CLIP towers"
        )
    # config.json lists only what differs from CLIPVisionConfig's defaults.
    defaults = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
    }
    kept = {name: value for name, value in config.items() if name in CLIP_LARGE or name in defaults}
    return {**defaults, **kept, "model_type": "clip_vision_model"}
