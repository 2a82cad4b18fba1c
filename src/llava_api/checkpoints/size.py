"""Which tensors a checkpoint has and what memory they take, from its config without the weights."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from llava_api.checkpoints.inspect import Checkpoint
from llava_api.errors import StartupError
from llava_api.vision.families import classic_name

MOST_LAYERS = 1000
KEYS_AND_VALUES = (".k_proj.weight", ".v_proj.weight")
LINEAR_LAYERS = re.compile(r"language_model\.model\.layers\.\d+\..*_proj\.weight")
"""The weights that are quantized, by their classic names."""
BYTES = {"float32": 4.0, "float16 / bfloat16": 2.0, "8 bit": 1.0, "4 bit": 0.5 + 2 / 128}
"""Bytes of a weight; in 4 bit with a scale of 16 bits for each 128 weights."""
Precision = Literal["8bit", "4bit"]
"""What the linear layers of a text model are quantized to, as ``convert --quantize`` calls it."""
PRECISIONS: dict[Precision, str] = {"8bit": "8 bit", "4bit": "4 bit"}
"""-> the names of ``BYTES``, and of messages."""
SIXTEEN_BIT = ("float16", "bfloat16")
QUANTIZATION = "quantization_config"
"""In config.json: how the weights are quantized."""


@dataclass(frozen=True, slots=True)
class Parameters:
    total: int
    quantizable: int
    """Parameters in linear layers of the text model, which AWQ, GPTQ, int8 and fp8 make smaller."""
    cached: int
    """Numbers that the KV cache holds for a token."""

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the weights by precision; what is not quantized stays at 16 bit. The KV cache comes on top."""
        made = {}
        for name, size in BYTES.items():
            rest = max(size, 2.0)
            made[name] = int(self.quantizable * size + (self.total - self.quantizable) * rest)
        return made


def unquantized_dtype(stored: str | None) -> str:
    """The type of the layers that a quantization leaves as they are, in a checkpoint of type ``stored``."""
    return stored if stored in SIXTEEN_BIT else "bfloat16"


def stored_precision(checkpoint: Checkpoint) -> Precision | None:
    """The size of the weights that a quantized checkpoint holds; None for one that is not quantized.

    A GGUF file of up to 5.3 bits a weight (Q4_0, Q4_K_M) counts as 4 bit, one of up to 9 (Q5_K_M, Q8_0) as 8 bit.
    """
    if checkpoint.gguf is not None:
        return "4bit" if checkpoint.gguf.bits <= 5.3 else "8bit" if checkpoint.gguf.bits <= 9 else None
    has = checkpoint.config.get(QUANTIZATION) or (checkpoint.config.get("text_config") or {}).get(QUANTIZATION)
    if not has:
        return None
    return "4bit" if has.get("bits") == 4 or has.get("format") == "pack-quantized" else "8bit"


def tensor_shapes(checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Every tensor that the checkpoint's config describes, under the hub's classic names, with its shape.

    Built by transformers on torch's meta device, which gives tensors a shape but no memory. Raises StartupError.
    """
    for part in ("text_config", "vision_config"):
        layers = (checkpoint.config.get(part) or {}).get("num_hidden_layers", 1)
        if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
            raise StartupError(f"the checkpoint's config.json has an impossible num_hidden_layers in {part}")
    return shapes_of(json.dumps({name: value for name, value in checkpoint.config.items() if name != QUANTIZATION}))


@lru_cache(maxsize=2)
def shapes_of(config_json: str) -> Mapping[str, tuple[int, ...]]:
    """``tensor_shapes``, which several steps of a start ask for."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        config = AutoConfig.for_model(**json.loads(config_json))
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except ImportError as error:
        raise StartupError("transformers and torch are needed for this, and one is not installed") from error
    except Exception as error:  # Config classes raise many kinds of exceptions.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise StartupError(f"the checkpoint's config.json describes no model: {first}") from error
    return {classic_name(name): tuple(tensor.shape) for name, tensor in model.named_parameters()}


def whole_text_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The text model's config with transformers' defaults for what is not given."""
    from transformers import AutoConfig

    given = {"model_type": checkpoint.text_model_type, **(checkpoint.config.get("text_config") or {})}
    made: dict[str, Any] = AutoConfig.for_model(**given).to_dict()
    return made


def count_parameters(checkpoint: Checkpoint) -> Parameters:
    """Raises StartupError if the config describes no model."""
    shapes = tensor_shapes(checkpoint)
    layers = {name: shape for name, shape in shapes.items() if LINEAR_LAYERS.fullmatch(name)}
    cached = sum(shape[0] for name, shape in layers.items() if name.endswith(KEYS_AND_VALUES))
    return Parameters(sum(map(math.prod, shapes.values())), sum(map(math.prod, layers.values())), cached)
