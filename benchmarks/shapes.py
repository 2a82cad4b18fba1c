"""Checkpoint folders of LLaVA-1.5's true shapes, for vLLM's ``load_format=dummy``: everything but the weights.

What such a model answers means nothing, and its work is that of the real one. Nothing is downloaded.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llava_api.checkpoints.quantize import Quantizer
from llava_api.checkpoints.size import Precision
from llava_api.cli.flags import DEMO, demo_folder

Json = dict[str, Any]
VOCABULARY = 32_064
IMAGE_TOKEN, PAD_TOKEN = 32_000, 32_001
"""As in the hub's copies."""
SMALL_FILES = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja")
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Of the hub's copies of LLaVA-1.6."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the text model, and of its vision tower. Images have 336 pixels and 576 tokens in all of them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vision_hidden: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16

    def config(self) -> Json:
        """config.json, as llava-hf/llava-1.5-7b-hf has it."""
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": IMAGE_TOKEN,
            "image_seq_length": 576,
            "projector_hidden_act": "gelu",
            "vision_feature_select_strategy": "default",
            "vision_feature_layer": -2,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": self.vision_hidden,
                "intermediate_size": 4 * self.vision_hidden,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_heads,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
            "text_config": {
                "model_type": "llama",
                "vocab_size": VOCABULARY,
                "hidden_size": self.hidden,
                "intermediate_size": self.intermediate,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.heads,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": PAD_TOKEN,
                "tie_word_embeddings": False,
            },
        }

    def quantization(self, precision: Precision) -> Json:
        """As ``convert --quantize`` writes it."""
        layer = "language_model.model.layers.0"
        shapes = {
            f"{layer}.self_attn.q_proj.weight": (self.hidden, self.hidden),
            f"{layer}.mlp.down_proj.weight": (self.hidden, self.intermediate),
        }
        return Quantizer(precision, shapes).config()


SEVEN = Shape(4096, 11_008, 32, 32)
THIRTEEN = Shape(5120, 13_824, 40, 40)
TINY = Shape(128, 256, 2, 4, vision_hidden=64, vision_layers=2, vision_heads=4)
"""For a CPU."""


def make_folder(target: Path, shape: Shape, precision: Precision | None = None) -> Path:
    demo = demo_folder() / DEMO
    target.mkdir()
    for name in SMALL_FILES:
        shutil.copy(demo / name, target)
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    specials = {"<image>": IMAGE_TOKEN, "<pad>": PAD_TOKEN}
    # Every number that the model may answer needs a text, or its token would not be sent.
    known |= {f"▁w{number}": number for number in {*range(len(known), VOCABULARY)} - {*specials.values()}} | specials
    for token in tokenizer["added_tokens"]:
        token["id"] = specials.get(token["content"], token["id"])
    images = json.loads((demo / "preprocessor_config.json").read_text())
    images |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    config = shape.config()
    if precision is not None:
        config["quantization_config"] = shape.quantization(precision)
    for name, content in {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "preprocessor_config.json": images,
        "processor_config.json": json.loads((demo / "processor_config.json").read_text()) | {"patch_size": 14},
    }.items():
        (target / name).write_text(json.dumps(content))
    # A folder without weights is refused. vLLM does not read this file.
    save_file({"none": torch.zeros(1)}, target / "model.safetensors")
    return target


def with_tiles(source: Path, target: Path) -> Path:
    """A copy that is a LLaVA-1.6 for what prepares images."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    (target / "config.json").write_text(json.dumps(config | {"image_grid_pinpoints": PINPOINTS}))
    return target
