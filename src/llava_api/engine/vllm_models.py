"""vLLM's two LLaVA models, with what LLaVA's checkpoints need beyond them.

- Weights under the names that any transformers writes (``classic_name``).
- ``mm_patch_merge_type`` of the config: vLLM has all three ways to merge tiles and always takes ``spatial_unpad``.
- A projector of one linear layer (``projector_hidden_act: linear``).
- Images as levels, 0 to 255: the normalised value of each is looked up here, next to the vision tower.
- Images for an adapter that brings its own projector (``vllm_projectors``).
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration

from llava_api.engine.start_errors import EngineStart, counted
from llava_api.errors import StartupError
from llava_api.vision.families import PROJECTOR, classic_name
from llava_api.vision.normalisation import Normalisation

Weights = Iterable[tuple[str, torch.Tensor]]


@contextmanager
def known_activation(vllm_config: VllmConfig) -> Iterator[bool]:
    """Build the model with an activation that vLLM knows. Yields whether the config asks for none (``linear``)."""
    config: Any = vllm_config.model_config.hf_config
    wanted = config.projector_hidden_act
    if wanted == "linear":
        config.projector_hidden_act = "gelu"
    try:
        yield wanted == "linear"
    finally:
        config.projector_hidden_act = wanted


class LevelValues(torch.nn.Module):
    """Levels (..., 3, S, S) -> the float32 values that the vision tower expects. float32 is returned unchanged."""

    table: torch.Tensor
    rows: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        table = Normalisation(tuple(config.image_mean), tuple(config.image_std)).table()
        # From a list, so that it is created on the device that the model is built on.
        self.register_buffer("table", torch.tensor(table.ravel().tolist(), dtype=torch.float32), persistent=False)
        self.register_buffer("rows", torch.tensor([[[0]], [[256]], [[512]]], dtype=torch.int32), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dtype != torch.uint8:
            return pixels
        places = pixels.to(torch.int32) + self.rows
        return self.table.index_select(0, places.flatten()).view(places.shape)


VllmModel: Any = object
"""The base class that comes after ``Extended``: one of vLLM's two models."""


class Extended(VllmModel):
    """What every vision family needs beyond vLLM's model."""

    multi_modal_projector: Any
    lora_skip_prefixes = (f"{PROJECTOR}.",)
    """What vLLM leaves out of an adapter."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        with known_activation(vllm_config) as linear:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        if linear:
            self.multi_modal_projector.act = torch.nn.Identity()
        self.level_values = LevelValues(self.config)

    def _image_pixels_to_features(self, vision_tower: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = super()._image_pixels_to_features(vision_tower, self.level_values(pixel_values))
        return features

    def embed_multimodal(self, *, adapter: torch.Tensor | None = None, **inputs: Any) -> Any:
        """``adapter``: the number of the one whose projector the images of this batch are for."""
        own = self.multi_modal_projector
        if adapter is not None:
            self.multi_modal_projector = self.lora_manager.get_adapter(int(adapter)).projector
        try:
            return super().embed_multimodal(**inputs)
        finally:
            self.multi_modal_projector = own

    def load_weights(self, weights: Weights) -> set[str]:
        loaded: set[str] = super().load_weights((classic_name(name), tensor) for name, tensor in counted(weights))
        return loaded


class Llava(Extended, LlavaForConditionalGeneration):
    """See ``vision/families.py``."""


class LlavaNext(Extended, LlavaNextForConditionalGeneration):
    def _merge_image_patch_embeddings(
        self, image_size: torch.Tensor, patch_embeddings: torch.Tensor, *, strategy: str
    ) -> torch.Tensor:
        """(1 + tiles, patches, hidden) -> (tokens, hidden). ``strategy`` is what vLLM always passes."""
        wanted = getattr(self.config, "mm_patch_merge_type", strategy)
        merged: torch.Tensor = super()._merge_image_patch_embeddings(image_size, patch_embeddings, strategy=wanted)
        return merged


def check_overrides(model: type[Extended]) -> None:
    """Raises StartupError if ``model`` overrides a method that vLLM's model does not have.

    vLLM would never call such a method, so the vision tower would be fed levels, or tiles be merged in another way.
    """
    ours, vllm = {Extended: vars(Extended), model: vars(model)}, model.__mro__[2]
    names = [name for methods in ours.values() for name, value in methods.items() if inspect.isfunction(value)]
    missing = [name for name in names if not callable(getattr(vllm, name, None))]
    if missing:
        error = StartupError(
            f"the installed vLLM's {vllm.__name__} has no method {', '.join(missing)}, which llava-api overrides: "
            "install a version of vLLM that this llava-api supports"
        )
        # vLLM imports this module in a subprocess first, whose exception it only logs.
        start = EngineStart.current()
        if start is not None:
            start.record(error)
        raise error


check_overrides(Llava)
check_overrides(LlavaNext)
