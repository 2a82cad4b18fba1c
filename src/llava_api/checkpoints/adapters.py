"""LoRA adapters in PEFT's format that are served beside a model: whether the engine would apply all of them.

The engine takes an adapter's tensors by their names and checks little else. An adapter that does not fit would silently
be served as the base model, or as a mixture that was never trained. So an adapter that may not be applied whole is
refused here.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_api.checkpoints.files import locate, read_json
from llava_api.errors import StartupError
from llava_api.vision.families import classic_name

NON_LORA = "non_lora_trainables.bin"
"""What LLaVA's own training code changes besides the text model's linear layers."""
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
TEXT_PREFIXES = (
    # transformers 4.52 and later, and before; the engine reads both, with or without PEFT's prefix.
    "model.language_model.",
    "language_model.model.",
    "lm_head.",
    "language_model.lm_head.",
)
LAYER_WEIGHT = re.compile(r"(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
LINEAR_LAYERS = ("_proj.weight", "lm_head.weight")
"""Ends of the names of the weights that the engine changes: attention, MLP and head, but no embedding."""
NOT_APPLIED = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
)
"""Settings in adapter_config.json for what PEFT can do beyond two matrices for a linear layer."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of ``init_lora_weights`` that leave the base model unchanged; pissa and others change it."""
Shapes = Mapping[str, tuple[int, ...]]


def check_projector(folder: Path) -> None:
    """Raises StartupError if an adapter made with LLaVA's own training code is there and its projector is not."""
    if any((folder / name).is_file() for name in WEIGHTS) and not (folder / NON_LORA).is_file():
        raise StartupError(
            f"the LoRA has no {NON_LORA} (the projector): LLaVA writes it when a training ends, so a checkpoint from "
            "the middle of one (checkpoint-1000) has none; serve the folder of the finished training, or download the "
            "LoRA again"
        )


def locate_adapter(path: str, download_dir: str | None) -> Path:
    """The folder, fetched if ``path`` is a hub id. Raises StartupError.

    Only the adapter's own files are fetched: repositories of adapters often hold the training's checkpoints too.
    """
    return locate(path, download_dir, files=(CONFIG, *WEIGHTS, NON_LORA))


def check_adapter(folder: Path, shapes: Shapes, max_rank: int | None = None) -> int:
    """The highest of its layers' ranks. ``shapes``: of the model's tensors by classic name (``size.tensor_shapes``).

    Raises StartupError for an adapter that the engine would not load, or would silently load in part.
    """
    if not (folder / CONFIG).is_file():
        raise StartupError(f"{folder} has no {CONFIG}")
    if (folder / NON_LORA).is_file():
        raise StartupError(
            "an adapter made with LLaVA's own training code brings its own projector; serve it as a model of its "
            "own, with --model-base"
        )
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise StartupError(f"{folder} has no {WEIGHTS[0]}")
    config = read_json(folder, CONFIG)
    check_config(config)
    rank = highest_rank(weights, config, shapes)
    if max_rank is not None and rank > max_rank:
        raise StartupError(f"it has rank {rank}, and this server takes up to {max_rank}: raise --max-lora-rank")
    return rank


def check_config(config: dict[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise StartupError(f"its {CONFIG} has peft_type {kind}, and the engine applies only LORA")
    if type(config.get("r")) is not int or config["r"] < 1:
        raise StartupError(f"its {CONFIG} names no rank (r)")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise StartupError(f"its {CONFIG} names no lora_alpha")
    if "target_modules" not in config:
        raise StartupError(f"its {CONFIG} names no target_modules")
    for option in NOT_APPLIED:
        if config.get(option):
            raise StartupError(f"its {CONFIG} has {option}, which the engine would not apply: {MERGE}")
    if config.get("bias") not in (None, "none"):
        raise StartupError(f"its {CONFIG} has bias {config['bias']}, which the engine would not apply: {MERGE}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise StartupError(f"its {CONFIG} has init_lora_weights {start}, which changes the base model too: {MERGE}")


MERGE = "merge this adapter into the checkpoint instead"


def highest_rank(weights: Path, config: dict[str, Any], shapes: Shapes) -> int:
    # torch takes seconds to import, so only if there is an adapter.
    from llava_api.checkpoints.tensors import read_tensors

    tensors = read_tensors(weights)
    if not tensors:
        raise StartupError(f"its {weights.name} holds no tensors")
    check_names(list(tensors))
    ranks: list[int] = []
    for key in tensors:
        found = LAYER_WEIGHT.fullmatch(key.removeprefix(PEFT_PREFIX))
        if found is None or not layer_weight(found["layer"]).endswith(LINEAR_LAYERS):
            raise StartupError(f"it has {key}, which is no lora_A or lora_B of a linear layer: {MERGE}")
        other = f"{key.removesuffix(found.group())}{found['layer']}.lora_{'B' if found['half'] == 'A' else 'A'}.weight"
        if other not in tensors:
            raise StartupError(f"it is incomplete: it has {key} and not the other half of the pair; download it again")
        if found["half"] == "A":
            rank = rank_of(found["layer"], config)
            check_shapes(found["layer"], (tuple(tensors[key].shape), tuple(tensors[other].shape)), rank, shapes)
            ranks.append(rank)
    return max(ranks)


def check_names(keys: list[str]) -> None:
    odd = [key for key in keys if ".default." in key or not key.removeprefix(PEFT_PREFIX).startswith(TEXT_PREFIXES)]
    if odd:
        raise StartupError(
            f"the engine would leave out {len(odd)} of its tensors, {odd[0]} among them; an adapter "
            "beside a LLaVA changes only its text model, under names that begin with "
            f"{PEFT_PREFIX}{TEXT_PREFIXES[0].removesuffix('.')}: {MERGE}"
        )


def layer_weight(layer: str) -> str:
    """The classic name of the weight that an adapter's layer changes."""
    return classic_name(f"{layer}.weight")


def check_shapes(layer: str, pair: tuple[tuple[int, ...], tuple[int, ...]], rank: int, shapes: Shapes) -> None:
    """``pair``: shapes of lora_A (rank, inputs) and lora_B (outputs, rank)."""
    wanted = shapes.get(layer_weight(layer))
    if wanted is None:
        raise StartupError(
            f"it changes {layer}, which the served model does not have: serve it beside the model it was trained on"
        )
    outputs, inputs = wanted
    if pair != ((rank, inputs), (outputs, rank)):
        raise StartupError(
            f"its lora_A and lora_B for {layer} are {pair[0]} and {pair[1]}, and the served model with rank {rank} "
            f"takes {(rank, inputs)} and {(outputs, rank)}: serve it beside the model that it was trained on"
        )


def rank_of(layer: str, config: dict[str, Any]) -> int:
    """``r``, or the rank that ``rank_pattern`` gives this layer. Patterns are matched as PEFT does."""
    patterns = config.get("rank_pattern") or {}
    try:
        found = (rank for pattern, rank in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
        rank = next(found, config["r"])
    except (AttributeError, re.error) as error:
        raise StartupError(f"its {CONFIG} has a rank_pattern that cannot be read") from error
    if type(rank) is not int or rank < 1:
        raise StartupError(f"its {CONFIG} has a rank_pattern that is no rank: {rank}")
    return rank
