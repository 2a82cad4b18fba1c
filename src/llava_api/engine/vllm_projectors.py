"""Adapters with a projector of their own, which vLLM's adapters have no place for.

vLLM's LoRA changes linear layers by two matrices of a low rank; LLaVA's fine-tuning trains all of the projector. So
vLLM reads an adapter without its projector. That is put beside the low-rank matrices and lives as long as they do, and
an image for such an adapter takes the adapter's number along to the model (``vllm_models``).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llava_api.vision.families import PROJECTOR, classic_name


class Projector(torch.nn.Module):
    """The projector of one adapter: two linear layers with an activation between them. Every GPU holds it whole."""

    def __init__(self, weights: dict[str, torch.Tensor], act: torch.nn.Module) -> None:
        super().__init__()
        self.weights, self.act = weights, act

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.linear("linear_1", features))
        return self.linear("linear_2", hidden)

    def linear(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        bias = self.weights.get(f"{layer}.bias")
        return torch.nn.functional.linear(values, self.weights[f"{layer}.weight"], bias)


def projector_of(folder: Path, base: Any) -> Projector | None:
    """The projector that an adapter brings; None without one. ``base``: the model's own."""
    start, like, file = f"{PROJECTOR}.", next(base.parameters()), folder / "adapter_model.safetensors"
    older = folder / "adapter_model.bin"
    held = load_file(file) if file.is_file() else torch.load(older, map_location="cpu", weights_only=True)
    named = {classic_name(key.removeprefix("base_model.model.")): tensor for key, tensor in held.items()}
    own = {name.removeprefix(start): tensor.to(like) for name, tensor in named.items() if name.startswith(start)}
    return Projector(own, base.act) if own else None


def load_projectors() -> bool:
    """Have vLLM load adapters with their projectors. Returns False if this vLLM loads adapters in another way."""
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.worker_manager import WorkerLoRAManager

    load_as_vllm_does: Any = getattr(WorkerLoRAManager, "_load_adapter", None)
    faults_to_vllm: Any = getattr(PEFTHelper, "_validate_features", None)
    if load_as_vllm_does is None or faults_to_vllm is None:
        return False

    def faults(helper: Any) -> Any:
        if helper.modules_to_save == [PROJECTOR]:
            helper.modules_to_save = None
        return faults_to_vllm(helper)

    def load(manager: Any, request: Any) -> Any:
        adapter = load_as_vllm_does(manager, request)
        model = manager._adapter_manager.model
        adapter.projector = projector_of(Path(request.lora_path), model.multi_modal_projector)
        return adapter

    PEFTHelper._validate_features = faults
    WorkerLoRAManager._load_adapter = load
    return True
