"""A small tokenizer with Llama's rules (dummy prefix, byte fallback), made without training."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

SPECIALS = ("<unk>", "<s>", "</s>")
ADDED = ("<image>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


def llama_like_tokenizer(added: tuple[str, ...] = ADDED) -> Tokenizer:
    """Single letters and bytes, and a merge or two; BOS is written by the post-processor."""
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁U", "SE", "▁USE"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [("▁", "U"), ("S", "E"), ("▁U", "SE")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*SPECIALS, *added)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_checkpoint(folder: Path, pinpoints: list[list[int]] | None = None) -> Path:
    """The small files of a LLaVA checkpoint of 84 px tiles of 14 px patches, 36 tokens each; 1.6 with ``pinpoints``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = llama_like_tokenizer(added=("<image>",))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": tokenizer.token_to_id("<image>"),
        "vision_config": {"model_type": "clip_vision_model", "image_size": 84, "patch_size": 14},
        "text_config": {"model_type": "llama", "eos_token_id": 2},
    }
    if pinpoints is not None:
        config |= {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "model_type": "llava_next",
            "image_grid_pinpoints": pinpoints,
        }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": True}))
    return folder
