"""The demo checkpoints' architectures, and the forward pass they are trained with.

The modules are transformers' own; only the way through them is written out here, so that the language-model
head is evaluated only on answer tokens and the vision tower's unused last layer costs nothing.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from llava_api.vision.families import LLAVA_1_5, LLAVA_1_6, VisionFamily
from llava_api.vision.geometry import Size

StageName = Literal["answers", "forms"]

KIND_CLASSES = 15
"""Nothing, four shapes, ten digits."""
COLOUR_CLASSES = 8
"""Nothing, seven colours."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of training: ``answers`` from scratch, then ``forms``, which mixes in answers in JSON."""

    name: StageName
    steps: int
    rate: float
    """Highest learning rate."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between the two demo checkpoints."""

    name: str
    family: VisionFamily
    tile_pixels: int
    patch_pixels: int
    pinpoints: tuple[Size, ...]
    stages: tuple[Stage, ...]
    vision_width: int = 128
    vision_layers: int = 5
    """One more than is used: the features are those of the last but one (``vision_feature_layer`` -2)."""
    text_width: int = 128
    text_layers: int = 4

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def side(self) -> int:
        return self.tile_pixels // self.patch_pixels


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "llava-tiny-1.5",
            LLAVA_1_5,
            tile_pixels=224,
            patch_pixels=28,
            pinpoints=(),
            stages=(Stage("answers", 2200, 2e-3), Stage("forms", 600, 1.2e-3)),
        ),
        Recipe(
            "llava-tiny-1.6",
            LLAVA_1_6,
            tile_pixels=112,
            patch_pixels=28,
            pinpoints=((112, 224), (224, 112), (224, 224), (336, 112), (112, 336)),
            stages=(Stage("answers", 600, 1.5e-3), Stage("forms", 600, 1.2e-3)),
        ),
    )
}


def vision_config(recipe: Recipe) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=recipe.vision_width,
        intermediate_size=recipe.vision_width * 4,
        projection_dim=recipe.vision_width,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.vision_width // 32,
        image_size=recipe.tile_pixels,
        patch_size=recipe.patch_pixels,
        hidden_act="quick_gelu",
    )


def text_config(recipe: Recipe, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.text_width,
        intermediate_size=recipe.text_width * 11 // 4,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_width // 32,
        num_key_value_heads=recipe.text_width // 32,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=vocabulary - 1,
        tie_word_embeddings=False,
    )


def build_model(recipe: Recipe, vocabulary: int, image_token: int) -> nn.Module:
    vision, text = vision_config(recipe), text_config(recipe, vocabulary)
    settings: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": image_token,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    if not recipe.family.tiled:
        return LlavaForConditionalGeneration(LlavaConfig(image_seq_length=recipe.side**2, **settings))
    # transformers and vLLM read pinpoints as (height, width); the list is symmetric, so both readings agree.
    pinpoints = [list(point) for point in recipe.pinpoints]
    return LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=pinpoints, **settings))


class Trainee(nn.Module):
    """A LLaVA model with an auxiliary head that names, for each vision patch, the mark that covers it."""

    def __init__(self, recipe: Recipe, vocabulary: int, image_token: int) -> None:
        super().__init__()
        self.image_token = image_token
        self.llava = build_model(recipe, vocabulary, image_token)
        self.auxiliary = nn.Sequential(
            nn.LayerNorm(recipe.vision_width), nn.Linear(recipe.vision_width, KIND_CLASSES + COLOUR_CLASSES)
        )
        for name, parameter in self.llava.named_parameters():
            if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]) * 0.8)
            elif "patch_embedding" in name:
                nn.init.normal_(parameter, std=0.02)
        newline = getattr(self.llava.model, "image_newline", None)
        if newline is not None:
            nn.init.normal_(newline, std=0.5)

    def features(self, pixels: Tensor) -> Tensor:
        """(tiles, 3, S, S) -> (tiles, patches, vision width), CLS dropped, last layer left out."""
        tower = self.llava.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers[:-1]:
            out = layer(hidden, attention_mask=None)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden[:, 1:]

    def forward(self, ids: Tensor, labels: Tensor, pixels: Tensor, gather: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(answer logits, answer labels, auxiliary logits).

        ``ids`` (batch, length) with the image token once per feature, ``gather`` the row of each of those in
        [all tile features, newline].
        """
        model = self.llava.model
        features = self.features(pixels)
        projected = model.multi_modal_projector(features).flatten(0, 1)
        newline = getattr(model, "image_newline", None)
        if newline is not None:
            projected = torch.cat([projected, newline[None].to(projected.dtype)])
        embedded = model.language_model.embed_tokens(ids)
        embedded = embedded.masked_scatter((ids == self.image_token)[..., None], projected[gather].to(embedded.dtype))
        hidden = model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = self.llava.lm_head(hidden[:, :-1][wanted])
        return logits, labels[:, 1:][wanted], self.auxiliary(features).flatten(0, 1)
