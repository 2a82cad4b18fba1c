"""LoRA adapters in PEFT's format, served beside a model: what the engine would load of them."""

from dataclasses import dataclass
from pathlib import Path

from llava_api.checkpoints.files import read_json
from llava_api.errors import StartupError

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_PREFIX = "base_model.model."
TEXT_PREFIXES = (
    # transformers 4.52 and later, and before; the engine reads both, with or without PEFT's prefix.
    "model.language_model.",
    "language_model.model.",
    "lm_head.",
    "language_model.lm_head.",
)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    path: str
    rank: int


def inspect_adapter(name: str, folder: Path) -> AdapterFolder:
    """Raises StartupError for an adapter that the engine would not load, or would load in part without a word."""
    if not (folder / "adapter_config.json").is_file():
        raise StartupError(f"--lora {name}: {folder} has no adapter_config.json")
    if (folder / "non_lora_trainables.bin").is_file():
        raise StartupError(
            f"--lora {name}: an adapter made with LLaVA's own training code brings its own projector; serve it as "
            "a model of its own, with --model-base"
        )
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise StartupError(f"--lora {name}: {folder} has no {WEIGHTS[0]}")
    rank = read_json(folder, "adapter_config.json").get("r")
    if type(rank) is not int or rank < 1:
        raise StartupError(f"--lora {name}: its adapter_config.json names no rank (r)")
    check_names(name, weights)
    return AdapterFolder(str(folder.resolve()), rank)


def check_names(name: str, weights: Path) -> None:
    # torch takes seconds to import: only where there is an adapter.
    from llava_api.checkpoints.tensors import read_tensors

    odd = [
        key
        for key in read_tensors(weights)
        if ".default." in key or not key.removeprefix(PEFT_PREFIX).startswith(TEXT_PREFIXES)
    ]
    if odd:
        raise StartupError(
            f"--lora {name}: the engine would leave out {len(odd)} of its tensors, {odd[0]} among them; an adapter "
            "beside a LLaVA changes its text model alone, under names that begin with "
            f"{PEFT_PREFIX}{TEXT_PREFIXES[0].removesuffix('.')}: merge this one into the checkpoint instead"
        )
