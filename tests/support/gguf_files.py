"""A hub-format checkpoint as the two GGUF files that llama.cpp's converters make of it: their names, order and layout.

Only tensors that those write: no layer of the vision tower after the one whose output is used, no last norm.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize
from safetensors.torch import load_file

Kind = Literal["F32", "F16", "Q8_0", "Q4_0"]
TEXT = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
OLD_VISION = {
    "vision_model.": "v.",
    "encoder.layers": "blk",
    "embeddings.": "",
    "_proj": "",
    "self_attn.": "attn_",
    "layer_norm": "ln",
    "mlp.fc1": "ffn_down",
    "mlp.fc2": "ffn_up",
    "embedding": "embd",
    "layrnorm": "ln",
}
"""By ``convert_image_encoder_to_gguf.py``, from which the files for LLaVA come; it swaps ffn_down and ffn_up."""
NEW_VISION = {**OLD_VISION, "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}


def write_pair(hub: Path, folder: Path, kind: Kind = "F32", *, old: bool = True) -> Path:
    """Write both files; returns the text model's. ``old``: with the vision names of 2023."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((hub / "config.json").read_text())
    weights = load_file(hub / "model.safetensors")
    write_text(folder / f"ggml-model-{kind.lower()}.gguf", hub, config["text_config"], weights, kind)
    write_vision(folder / "mmproj-model-f16.gguf", config, weights, "F32" if kind == "F32" else "F16", old=old)
    return folder / f"ggml-model-{kind.lower()}.gguf"


def write_text(path: Path, hub: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], kind: Kind) -> None:
    writer = GGUFWriter(path, "llama")
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_file_type(LlamaFileType.ALL_F32)
    add_tokenizer(writer, hub, config["vocab_size"])
    for name, tensor in weights.items():
        if not name.startswith("language_model."):
            continue
        if name.endswith("q_proj.weight"):
            tensor = permuted(tensor, heads)
        if name.endswith("k_proj.weight"):
            tensor = permuted(tensor, shared)
        add(writer, replaced(name.removeprefix("language_model."), TEXT), tensor, kind)
    close(writer)


def write_vision(
    path: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], kind: Kind, *, old: bool
) -> None:
    vision = config["vision_config"]
    used = vision["num_hidden_layers"] + config["vision_feature_layer"] + 1
    writer = GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    for name in ("image_size", "patch_size", "projection_dim"):
        writer.add_uint32(f"clip.vision.{name}", vision[name])
    writer.add_uint32("clip.vision.embedding_length", vision["hidden_size"])
    writer.add_uint32("clip.vision.feed_forward_length", vision["intermediate_size"])
    writer.add_uint32("clip.vision.block_count", used)
    writer.add_uint32("clip.vision.attention.head_count", vision["num_attention_heads"])
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    writer.add_bool("clip.use_gelu", False)
    if "image_grid_pinpoints" in config:
        writer.add_array(
            "clip.vision.image_grid_pinpoints", [side for point in config["image_grid_pinpoints"] for side in point]
        )
        writer.add_string("clip.vision.image_aspect_ratio", "anyres")
        writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
    if not old:
        writer.add_array("clip.vision.feature_layer", [used])
    dropped = [f".layers.{number}." for number in range(used, vision["num_hidden_layers"])] + ["post_layernorm"]
    for name, tensor in weights.items():
        if name == "image_newline":
            add(writer, "model.image_newline", tensor, kind)
        elif name.startswith("multi_modal_projector."):
            layer, part = name.split(".")[1:]
            add(writer, f"mm.{0 if layer == 'linear_1' else 2}.{part}", tensor, kind)
        elif name.startswith("vision_tower.") and not any(part in name for part in dropped):
            names = OLD_VISION if old else NEW_VISION
            add(writer, replaced(name.removeprefix("vision_tower."), names), tensor, kind)
    close(writer)


def add_tokenizer(writer: GGUFWriter, hub: Path, rows: int) -> None:
    """Pieces with the score of their merge's rank, as sentencepiece has them; the merges are not in the file."""
    tokenizer = json.loads((hub / "tokenizer.json").read_text())
    settings = json.loads((hub / "tokenizer_config.json").read_text())
    ids = dict(tokenizer["model"]["vocab"])
    first = len(tokenizer["model"]["merges"])
    scores = dict.fromkeys(ids, 0.0)
    for rank, merge in reversed(list(enumerate(tokenizer["model"]["merges"]))):
        scores["".join(merge)] = -float(rank)
    kinds = {piece: TokenType.BYTE if piece.startswith("<0x") else TokenType.NORMAL for piece in ids}
    for token in tokenizer["added_tokens"]:
        ids[token["content"]] = token["id"]
        kinds[token["content"]] = TokenType.CONTROL
        scores[token["content"]] = -float(first)
    kinds["<unk>"] = TokenType.UNKNOWN
    by_id = {index: piece for piece, index in ids.items()}
    pieces = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([scores.get(piece, -10000.0) for piece in pieces])
    writer.add_token_types([kinds.get(piece, TokenType.UNUSED) for piece in pieces])
    for name, add_id in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("unk_token", writer.add_unk_token_id),
    ):
        add_id(ids[settings[name]])


def permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The two halves of each head's rows interleaved, as llama.cpp's RoPE takes them."""
    rows = tensor.shape[0]
    return tensor.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def replaced(name: str, parts: dict[str, str]) -> str:
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


def add(writer: GGUFWriter, name: str, tensor: torch.Tensor, kind: Kind) -> None:
    """Vectors stay float32, as in every GGUF file."""
    values = tensor.float().numpy()
    if kind == "F32" or values.ndim == 1:
        writer.add_tensor(name, values)
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        stored = GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)


def close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
