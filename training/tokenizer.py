"""Train the demo checkpoints' tokenizer: a small one with the rules of Llama's (dummy prefix, byte fallback)."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from training.conversations import (
    DESCRIBE,
    DESCRIBE_VARIANTS,
    NO_IMAGE_QUESTIONS,
    SELF_ANSWER,
    SYSTEM_PROMPTS,
)
from training.drawings import COLOURS, KINDS

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VOCABULARY = 766
"""Entries besides ``<image>`` and ``<pad>``: 3 specials, 256 bytes, characters and merges."""


def corpus() -> list[str]:
    """Every fixed text of the recipe, often enough that its words become single tokens."""
    texts = [VICUNA_SYSTEM + " USER: ASSISTANT: What Yes"] * 20 + [
        *SYSTEM_PROMPTS,
        *NO_IMAGE_QUESTIONS,
        SELF_ANSWER,
    ]
    texts += [*DESCRIBE, *DESCRIBE_VARIANTS, "How many shapes are there?", "What number is written?"]
    texts += [
        "What color is it?",
        "The number.",
        "Yes.",
        "No.",
        "None.",
        "One.",
        "Two.",
        "Three.",
        "first second",
    ]
    for kind in KINDS:
        texts += [
            f"Is there a {kind}?",
            f"What color is the {kind}?",
            f"A {kind}.",
            f"a {kind}, and an {kind}",
        ]
    for colour in COLOURS:
        texts += [f"A {colour} An {colour}", f"{colour.capitalize()}."]
    printable = "".join(chr(code) for code in range(33, 127))
    return texts * 20 + [" ".join(printable), printable]


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Digits stand alone and merges stay inside words; only the merges are kept, as in Llama's own file, which
    # has no pre-tokenizer either.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split("<", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    # The bytes are ordinary vocabulary, not special tokens.
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True), AddedToken("<pad>", special=True)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the small files that transformers wants beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
        "extra_special_tokens": {"image_token": "<image>"},
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "processor_class": "LlavaProcessor",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
