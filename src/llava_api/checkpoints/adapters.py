"""LoRA adapters in PEFT's format that are served beside a model: whether the engine would apply all of them.

The engine takes an adapter's tensors by their names and checks little else. An adapter that does not fit would silently
be served as the base model, or as a mixture that was never trained. So an adapter that may not be applied whole is
refused here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_api.checkpoints.files import locate, read_json
from llava_api.errors import StartupError
from llava_api.vision.families import PROJECTOR, classic_name

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


@dataclass(frozen=True, slots=True)
class Changes:
    """What an adapter changes."""

    rank: int
    """The highest of its layers'."""
    projector: bool
    """Whether it brings a projector of its own."""


def weights_file(folder: Path) -> Path | None:
    """Of an adapter's low-rank matrices."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def check_projector(folder: Path) -> None:
    """Raises StartupError if an adapter made with LLaVA's own training code is there and its projector is not."""
    if weights_file(folder) is not None and not (folder / NON_LORA).is_file():
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


def read_config(folder: Path) -> dict[str, Any]:
    """Raises StartupError if ``folder`` is no adapter's."""
    if not (folder / CONFIG).is_file():
        raise StartupError(f"{folder} has no {CONFIG}: name the folder of an adapter whose training has ended")
    return read_json(folder, CONFIG)


def check_adapter(folder: Path, shapes: Shapes, max_rank: int | None = None) -> Changes:
    """``shapes``: of the model's tensors by classic name (``size.tensor_shapes``).

    Raises StartupError for an adapter that the engine would not load, or would silently load in part.
    """
    config = read_config(folder)
    if (folder / NON_LORA).is_file():
        raise StartupError(
            "it was made with LLaVA's own training code: serve it as a model of its own, with --model-base, or use "
            "llava-api merge"
        )
    weights = weights_file(folder)
    if weights is None:
        raise StartupError(f"{folder} has no {WEIGHTS[0]}")
    check_plain(config)
    if config.get("modules_to_save") not in (None, [], [PROJECTOR]):
        raise StartupError(
            f"its {CONFIG} has modules_to_save {config['modules_to_save']}, and the engine takes only {PROJECTOR}: "
            f"{MERGE}"
        )
    # torch takes seconds to import, so only if there is an adapter.
    from llava_api.checkpoints.tensors import read_tensors

    held = {key: tuple(tensor.shape) for key, tensor in read_tensors(weights).items()}
    whole = {key: shape for key, shape in held.items() if is_saved_whole(key.removeprefix(PEFT_PREFIX), config)}
    if config.get("modules_to_save"):
        check_projector_shapes(whole, shapes)
    halves = {key: shape for key, shape in held.items() if key not in whole}
    if not halves:
        raise StartupError(f"its {weights.name} holds no tensors of a LoRA: {MERGE}")
    rank = highest_rank(halves, config, shapes)
    if max_rank is not None and rank > max_rank:
        raise StartupError(f"it has rank {rank}, and this server takes up to {max_rank}: raise --max-lora-rank")
    return Changes(rank, projector=bool(whole))


def is_saved_whole(name: str, config: dict[str, Any]) -> bool:
    """Whether a tensor belongs to a module that the adapter holds whole. ``name``: without PEFT's prefix."""
    return any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or ())


def check_projector_shapes(whole: Shapes, shapes: Shapes) -> None:
    found = {classic_name(key.removeprefix(PEFT_PREFIX)): shape for key, shape in whole.items()}
    wanted = {name: shape for name, shape in shapes.items() if name.startswith(f"{PROJECTOR}.")}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise StartupError(
                f"its {name} is {found.get(name, 'missing')}, and the served model's {wanted.get(name, 'is missing')}: "
                "serve it beside the model that it was trained on, or download it again"
            )


def check_plain(config: dict[str, Any]) -> None:
    """Raises StartupError for an adapter_config.json that describes more than two matrices for linear layers."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise StartupError(f"its {CONFIG} has peft_type {kind}, and llava-api takes only LORA")
    if type(config.get("r")) is not int or config["r"] < 1:
        raise StartupError(f"its {CONFIG} names no rank (r)")
    if not is_alpha(config.get("lora_alpha")):
        raise StartupError(f"its {CONFIG} names no lora_alpha")
    if "target_modules" not in config:
        raise StartupError(f"its {CONFIG} names no target_modules")
    for option in NOT_APPLIED:
        if config.get(option):
            raise StartupError(f"its {CONFIG} has {option}, {MERGE_WITH_PEFT}")
    if config.get("bias") not in (None, "none"):
        raise StartupError(f"its {CONFIG} has bias {config['bias']}, {MERGE_WITH_PEFT}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise StartupError(f"its {CONFIG} has init_lora_weights {start}, {MERGE_WITH_PEFT}")


MERGE = "merge this adapter into the checkpoint with llava-api merge"
MERGE_WITH_PEFT = "which llava-api neither serves nor merges: merge this adapter with peft's merge_and_unload"


def highest_rank(halves: Shapes, config: dict[str, Any], shapes: Shapes) -> int:
    """``halves``: the adapter's tensors without its projector."""
    check_names(list(halves))
    ranks: list[int] = []
    for key in halves:
        found = LAYER_WEIGHT.fullmatch(key.removeprefix(PEFT_PREFIX))
        if found is None or not layer_weight(found["layer"]).endswith(LINEAR_LAYERS):
            raise StartupError(f"it has {key}, which is no lora_A or lora_B of a linear layer: {MERGE}")
        other = f"{key.removesuffix(found.group())}{found['layer']}.lora_{'B' if found['half'] == 'A' else 'A'}.weight"
        if other not in halves:
            raise StartupError(f"it is incomplete: it has {key} and not the other half of the pair; download it again")
        if found["half"] == "A":
            rank = rank_of(found["layer"], config)
            check_shapes(found["layer"], (halves[key], halves[other]), rank, shapes)
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
    """``r``, or the rank that ``rank_pattern`` gives this layer."""
    rank = of_pattern(layer, config, "rank_pattern", config["r"])
    if type(rank) is not int or rank < 1:
        raise StartupError(f"its {CONFIG} has a rank_pattern that is no rank: {rank}")
    return rank


def alpha_of(layer: str, config: dict[str, Any]) -> float:
    alpha = of_pattern(layer, config, "alpha_pattern", config["lora_alpha"])
    if not is_alpha(alpha):
        raise StartupError(f"its {CONFIG} has an alpha_pattern that is no number: {alpha}")
    return float(alpha)


def is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def of_pattern(layer: str, config: dict[str, Any], name: str, default: Any) -> Any:
    """What the first pattern that fits the layer gives. Patterns are matched as PEFT does."""
    try:
        patterns = (config.get(name) or {}).items()
        return next((value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", layer)), default)
    except (AttributeError, re.error) as error:
        raise StartupError(f"its {CONFIG} has a {name} that cannot be read") from error
