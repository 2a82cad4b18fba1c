"""vLLM's two LLaVA models, with what LLaVA's checkpoints need beyond them.

- Weights under the names that any transformers writes (``weight_names``).
- ``mm_patch_merge_type`` of the config: vLLM has all three ways to merge tiles and always takes ``spatial_unpad``.
- A projector of one linear layer (``projector_hidden_act: linear``).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration

from llava_api.weight_names import classic_name

Weights = Iterable[tuple[str, torch.Tensor]]


@contextmanager
def known_activation(vllm_config: VllmConfig) -> Iterator[bool]:
    """Build under an activation that vLLM knows; yields whether the config asks for none at all (``linear``)."""
    config: Any = vllm_config.model_config.hf_config
    wanted = config.projector_hidden_act
    if wanted == "linear":
        config.projector_hidden_act = "gelu"
    try:
        yield wanted == "linear"
    finally:
        config.projector_hidden_act = wanted


def classic(weights: Weights) -> Weights:
    return ((classic_name(name), tensor) for name, tensor in weights)


class Llava(LlavaForConditionalGeneration):
    """LLaVA-1.5."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        with known_activation(vllm_config) as linear:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        if linear:
            self.multi_modal_projector.act = torch.nn.Identity()

    def load_weights(self, weights: Weights) -> set[str]:
        loaded: set[str] = super().load_weights(classic(weights))
        return loaded


class LlavaNext(LlavaNextForConditionalGeneration):
    """LLaVA-1.6 (NeXT)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        with known_activation(vllm_config) as linear:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        if linear:
            self.multi_modal_projector.act = torch.nn.Identity()

    def load_weights(self, weights: Weights) -> set[str]:
        loaded: set[str] = super().load_weights(classic(weights))
        return loaded

    def _merge_image_patch_embeddings(
        self, image_size: torch.Tensor, patch_embeddings: torch.Tensor, *, strategy: str
    ) -> torch.Tensor:
        """(1 + tiles, patches, hidden) -> (tokens, hidden). ``strategy`` is what vLLM always passes."""
        wanted = getattr(self.config, "mm_patch_merge_type", strategy)
        merged: torch.Tensor = super()._merge_image_patch_embeddings(image_size, patch_embeddings, strategy=wanted)
        return merged
