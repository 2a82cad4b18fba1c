"""LoRA adapters that are merged into their base model: low-rank changes to it, and weights that replace its own.

Source: ``load_pretrained_model`` of the original's ``llava/model/builder.py``, and PEFT's ``merge_and_unload``.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from llava_api.checkpoints.adapters import (
    LAYER_WEIGHT,
    NON_LORA,
    PEFT_PREFIX,
    WEIGHTS,
    alpha_of,
    check_plain,
    check_projector,
    is_saved_whole,
    rank_of,
    read_config,
    weights_file,
)
from llava_api.checkpoints.names import hub_name
from llava_api.checkpoints.tensors import Tensors, read_tensors
from llava_api.errors import StartupError
from llava_api.vision.families import classic_name


class Lora:
    """The changes of one adapter, under the hub's classic names."""

    def __init__(self, folder: Path, *, original: bool) -> None:
        """``original``: one made with LLaVA's own training code, whose projector is a file of its own."""
        self.config = read_config(folder)
        check_plain(self.config)
        weights = weights_file(folder)
        if weights is None:
            raise StartupError(f"the LoRA is incomplete: {WEIGHTS[0]} is missing; download it again")
        self.replaced: Tensors = {}
        """Weights of the base model that the adapter has new values for."""
        if original:
            check_projector(folder)
            for key, tensor in read_tensors(folder / NON_LORA).items():
                name = hub_name(original_name(key))
                if name is not None:
                    self.replaced[name] = tensor
        name_of = name_of_original if original else name_of_hub
        self.halves: dict[str, dict[str, torch.Tensor]] = {}
        """By the weight that they change: lora_A and lora_B, as A and B."""
        self.layers: dict[str, str] = {}
        """The changed weights' layers, as PEFT names them."""
        for key, tensor in read_tensors(weights).items():
            self.add(key, tensor, name_of)
        if any(len(halves) != 2 for halves in self.halves.values()) or not self.halves:
            raise StartupError("the LoRA is incomplete: a lora_A or lora_B is missing; download it again")

    def add(self, key: str, tensor: torch.Tensor, name_of: Callable[[str], str | None]) -> None:
        plain = key.removeprefix(PEFT_PREFIX).replace(".default.", ".")
        found = LAYER_WEIGHT.fullmatch(plain)
        if found is not None:
            name = name_of(f"{found['layer']}.weight")
            if name is not None:
                self.halves.setdefault(name, {})[found["half"]] = tensor
                self.layers[name] = found["layer"]
        elif is_saved_whole(plain, self.config):
            self.replaced[classic_name(plain)] = tensor
        else:
            raise StartupError(f"the LoRA changes more than llava-api can merge: {key}")

    def applied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the base model with the adapter's change, computed in float32, in the tensor's own type."""
        if name in self.replaced:
            return self.replaced.pop(name).to(tensor.dtype)
        if is_saved_whole(name, self.config):
            raise StartupError(f"the LoRA is incomplete: {name} of its modules_to_save is missing; download it again")
        halves = self.halves.pop(name, None)
        if halves is None:
            return tensor
        layer, (down, up) = self.layers[name], (halves["A"].float(), halves["B"].float())
        rank, alpha = rank_of(layer, self.config), alpha_of(layer, self.config)
        if tensor.ndim != 2 or down.shape != (rank, tensor.shape[1]) or up.shape != (tensor.shape[0], rank):
            raise StartupError(f"the LoRA does not fit its base model in {layer}: {ANOTHER_BASE}")
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        change: torch.Tensor = (up @ down) * scale
        return (tensor.float() + change).to(tensor.dtype)

    def check_all_applied(self) -> None:
        if self.halves:
            layer = self.layers[min(self.halves)]
            raise StartupError(f"the LoRA does not fit its base model, which has no {layer}: {ANOTHER_BASE}")


ANOTHER_BASE = "give the one that it was trained on"


def name_of_hub(name: str) -> str | None:
    return classic_name(name)


def name_of_original(name: str) -> str | None:
    return hub_name(original_name(name))


def original_name(name: str) -> str:
    """PEFT's name -> the original model's."""
    name = name.removeprefix(PEFT_PREFIX)
    # non_lora_trainables has this prefix if the model was wrapped once only.
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith("model.model.") else name
