"""The tensors of a GGUF pair, dequantized, under the hub's names."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, ReaderTensor
from gguf.quants import dequantize

from llava_api.checkpoints.gguf_pair import NEWLINES, read_gguf
from llava_api.errors import StartupError

BLOCK = re.compile(r"(v\.)?blk\.(\d+)\.(\w+)")
TEXT = "language_model.model"
TOWER = "vision_tower.vision_model"
OUTSIDE_BLOCKS = {
    "token_embd": f"{TEXT}.embed_tokens",
    "output_norm": f"{TEXT}.norm",
    "output": "language_model.lm_head",
    "v.class_embd": f"{TOWER}.embeddings.class_embedding",
    "v.patch_embd": f"{TOWER}.embeddings.patch_embedding",
    "v.position_embd": f"{TOWER}.embeddings.position_embedding",
    "v.pre_ln": f"{TOWER}.pre_layrnorm",
    "v.post_ln": f"{TOWER}.post_layernorm",
    "mm.0": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
    **dict.fromkeys(NEWLINES, "image_newline"),
}
ATTENTION = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
TEXT_BLOCK = {
    **ATTENTION,
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
VISION_BLOCK = {**ATTENTION, "attn_out": "self_attn.out_proj", "ln1": "layer_norm1", "ln2": "layer_norm2"}
FIRST_AND_SECOND = ("ffn_up", "ffn_down")
"""The two layers of a vision block. Files for LLaVA have the names the wrong way round, so sizes decide."""


def read_tensors(file: Path, config: dict[str, Any], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yields each tensor as (the hub's name, values, bytes in the file); only one is in memory at a time.

    ``config``: the hub's config.json. Raises StartupError for a tensor that no LLaVA has.
    """
    heads = {
        "self_attn.q_proj.": config["text_config"]["num_attention_heads"],
        "self_attn.k_proj.": config["text_config"]["num_key_value_heads"],
    }
    rotated = config["text_config"]["model_type"] != "qwen2"
    for stored in read_gguf(file).tensors:
        name = hub_name(stored, config["vision_config"]["hidden_size"])
        tensor = values(stored)
        for layer, count in heads.items():
            if rotated and name.startswith(TEXT) and layer in name:
                tensor = unpermuted(tensor, count)
        yield name, tensor.to(dtype), int(stored.n_bytes)


def hub_name(stored: ReaderTensor, vision_width: int) -> str:
    layer, _, kind = stored.name.rpartition(".")
    if stored.name in OUTSIDE_BLOCKS:
        return OUTSIDE_BLOCKS[stored.name]
    if layer in OUTSIDE_BLOCKS:
        return f"{OUTSIDE_BLOCKS[layer]}.{kind}"
    block = BLOCK.fullmatch(layer)
    vision, number, part = block.groups() if block else (None, None, "")
    if vision and part in FIRST_AND_SECOND:
        # The shape is the other way round in GGUF: its last number counts the outputs.
        return f"{TOWER}.encoder.layers.{number}.mlp.{'fc2' if stored.shape[-1] == vision_width else 'fc1'}.{kind}"
    known = (VISION_BLOCK if vision else TEXT_BLOCK).get(part)
    if known is None:
        raise StartupError(f"the GGUF file has a tensor that no LLaVA has: {stored.name}")
    return f"{TOWER}.encoder.layers.{number}.{known}.{kind}" if vision else f"{TEXT}.layers.{number}.{known}.{kind}"


def values(stored: ReaderTensor) -> torch.Tensor:
    if stored.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return torch.from_numpy(stored.data)
    try:
        return torch.from_numpy(dequantize(stored.data, stored.tensor_type))
    except NotImplementedError as error:
        raise StartupError(
            f"the GGUF file has weights of type {stored.tensor_type.name}, which cannot be read"
        ) from error


def unpermuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Each head's rows in the hub's order. llama.cpp interleaves the two halves of a head, for its RoPE."""
    if not tensor.ndim or tensor.shape[0] % (2 * heads):
        raise StartupError(f"the GGUF file has attention weights of {tuple(tensor.shape)}, not of {heads} heads")
    pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
