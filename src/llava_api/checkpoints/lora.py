"""LoRA fine-tunes in the original format: a base model, low-rank changes to it, and new projector weights.

Source: ``load_pretrained_model`` of the original's ``llava/model/builder.py``, and PEFT's ``merge_and_unload``.
"""

import math
from pathlib import Path
from typing import Any

import torch

from llava_api.checkpoints.adapters import CONFIG, NON_LORA, PEFT_PREFIX, WEIGHTS, check_projector
from llava_api.checkpoints.files import read_json
from llava_api.checkpoints.tensors import read_tensors
from llava_api.errors import StartupError


class Lora:
    """The changes of one adapter, under the original's names."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder, CONFIG)
        check(config)
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is None:
            raise StartupError(f"the LoRA is incomplete: {WEIGHTS[0]} is missing; download it again")
        check_projector(folder)
        rank, alpha = config["r"], config.get("lora_alpha", config["r"])
        self.scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        self.factors = {original_name(name): tensor for name, tensor in read_tensors(weights).items()}
        self.replaced = {original_name(name): tensor for name, tensor in read_tensors(folder / NON_LORA).items()}
        changed = [name for name in self.factors if name.endswith(".lora_A.weight")]
        self.unmerged = {name.removesuffix(".lora_A.weight") for name in changed}
        self.rank = rank
        unpaired = [module for module in self.unmerged if f"{module}.lora_B.weight" not in self.factors]
        if unpaired or 2 * len(self.unmerged) != len(self.factors):
            raise StartupError("the LoRA is incomplete: a lora_A or lora_B is missing; download it again")
        odd = [name for name in self.factors if ".lora_A." not in name and ".lora_B." not in name]
        if odd:
            raise StartupError(f"the LoRA changes more than llava-api can merge: {odd[0]}")

    def applied(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor of the base model with the adapter's change; None if the adapter replaces it."""
        if name in self.replaced:
            return None
        module = name.removesuffix(".weight")
        if module not in self.unmerged or not name.endswith(".weight"):
            return tensor
        self.unmerged.discard(module)
        down, up = self.factors[f"{module}.lora_A.weight"], self.factors[f"{module}.lora_B.weight"]
        if down.shape != (self.rank, tensor.shape[-1]) or up.shape != (tensor.shape[0], self.rank):
            raise StartupError(
                f"the LoRA does not fit its base model in {module}: give the right one with --model-base"
            )
        change: torch.Tensor = (up.float() @ down.float()) * self.scale
        return (tensor.float() + change).to(tensor.dtype)

    def check_all_applied(self) -> None:
        if self.unmerged:
            raise StartupError(
                f"the LoRA does not fit its base model, which has no {sorted(self.unmerged)[0]}: give the right one "
                "with --model-base"
            )


def original_name(name: str) -> str:
    """PEFT's name -> the original model's."""
    name = name.removeprefix(PEFT_PREFIX)
    # non_lora_trainables has this prefix if the model was wrapped once only.
    name = name.removeprefix("base_model.")
    name = name.removeprefix("model.") if name.startswith("model.model.") else name
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def check(config: dict[str, Any]) -> None:
    rank, alpha = config.get("r"), config.get("lora_alpha", 1)
    if (
        config.get("peft_type", "LORA") != "LORA"
        or type(rank) is not int
        or rank < 1
        or not isinstance(alpha, int | float)
        or not math.isfinite(alpha)
    ):
        raise StartupError("adapter_config.json describes no LoRA that llava-api can merge")
    for name in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise StartupError(f"adapter_config.json has {name}, which llava-api cannot merge")
