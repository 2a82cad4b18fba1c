"""Small tokenizers of each text model, trained in the call: SentencePiece for Llama and Mistral, else byte-level BPE.

What differs between the published ones is kept: the dummy prefix with and without ``legacy``, byte fallback, who
writes BOS, the split patterns, and the place of the special tokens.
"""

import functools
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

IMAGE_TOKEN = "<image>"
BASE_VOCABULARY = 400

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Qwen2's and Llama-3's pattern; they differ in how many digits make a piece."""

CORPUS = (
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: What is shown in the image? ASSISTANT: The image shows a red circle on a white ground.",
    "USER: What colour is the square? ASSISTANT: The square is blue, and the circle beside it is green.",
    "[INST] Describe this image in one sentence. [/INST] A small dog runs along the beach in the evening sun.",
    "[INST] How many people are in the picture? [/INST] There are 3 people: two stand, one sits at the table.",
    "system: Answer the questions. user: Who wrote it? assistant: I don't know; it's not in the image.",
    "It's what we've seen, isn't it? They'll say they're sure; I'm not, and you'd agree.",
    "Numbers 0, 12, 345 and 6789 are read digit by digit by some models, and in groups by others.",
    "Left, right, above, below: the black cat lies under the yellow lamp near the window.",
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. Voilà: a café, naïve & (almost) 100% grün!",
    "def look(image): return [pixel * 2 for pixel in image] # two spaces  and three   in one line",
)


@dataclass(frozen=True)
class Specials:
    bos: str | None
    eos: str
    unk: str | None
    pad: str | None
    tokenizer_class: str
    after_vocabulary: tuple[str, ...] = ()
    """Added after the trained vocabulary; Llama's three are its first pieces instead."""
    legacy: bool | None = None
    """Vicuna-1.5's tokenizer says false, Mistral's true; the others have no such flag."""


LLAMA = Specials("<s>", "</s>", "<unk>", None, "LlamaTokenizer", legacy=False)
SPECIALS = {
    "llama": LLAMA,
    "mistral": Specials("<s>", "</s>", "<unk>", None, "LlamaTokenizer", legacy=True),
    "qwen2": Specials(
        None, "<|im_end|>", None, "<|endoftext|>", "Qwen2Tokenizer", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ),
    "llama3": Specials(
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
        None,
        "PreTrainedTokenizerFast",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}


@functools.cache
def sentencepiece_model() -> bytes:
    """Trained with the settings stored in Llama's own tokenizer.model; newlines are bytes there too."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        model_type="bpe",
        vocab_size=BASE_VOCABULARY,
        character_coverage=1.0,
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


@functools.cache
def converted_sentencepiece() -> str:
    """tokenizer.json as transformers makes it of tokenizer.model; pieces and merges are all we keep of it."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        write_json(folder / "tokenizer_config.json", {**token_names(LLAMA), "legacy": False})
        converted: str = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    return converted


def llama_tokenizer(legacy: bool) -> Tokenizer:
    """Llama's rules written out here: transformers 5.19 makes a Metaspace of both values of ``legacy``.

    For legacy that is Metaspace "always", which leaves out the dummy prefix if a piece already starts with a
    space. SentencePiece puts one there too, and so does the published tokenizer.json: Prepend and Replace, as
    transformers' LlamaConverter.normalizer still spells them.
    """
    tokenizer = Tokenizer.from_str(converted_sentencepiece())
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@functools.cache
def trained_bytes(digits: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT % digits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "\n".join(CORPUS), "\n\n".join(CORPUS)], trainer)
    trained: str = tokenizer.to_str()
    return trained


def qwen2_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_str(trained_bytes(r"\p{N}"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    add_specials(tokenizer, SPECIALS["qwen2"].after_vocabulary)
    return tokenizer


def llama3_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_str(trained_bytes(r"\p{N}{1,3}"))
    add_specials(tokenizer, SPECIALS["llama3"].after_vocabulary)
    bos = "<|begin_of_text|>"
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def add_specials(tokenizer: Tokenizer, tokens: tuple[str, ...]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def build(text_model: str, image_token: bool) -> Tokenizer:
    """The backend tokenizer; ``<image>`` takes the next free id if it is wanted."""
    legacy = SPECIALS[text_model].legacy
    if legacy is not None:
        tokenizer = llama_tokenizer(legacy)
    else:
        tokenizer = qwen2_tokenizer() if text_model == "qwen2" else llama3_tokenizer()
    if image_token:
        add_specials(tokenizer, (IMAGE_TOKEN,))
    return tokenizer


@functools.cache
def token_ids(text_model: str) -> dict[str, int]:
    """Ids of the special tokens by their text, with ``<image>``'s, which is the length without it."""
    tokenizer = build(text_model, image_token=True)
    return {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}


def token_names(specials: Specials) -> dict[str, Any]:
    names = {"bos_token": specials.bos, "eos_token": specials.eos, "unk_token": specials.unk}
    return {"tokenizer_class": specials.tokenizer_class, **names, "pad_token": specials.pad}


def tokenizer_config(text_model: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """In the published files' form, their ``added_tokens_decoder`` included."""
    specials = SPECIALS[text_model]
    config: dict[str, Any] = {
        **token_names(specials),
        "added_tokens_decoder": {
            str(index): token.__getstate__() for index, token in tokenizer.get_added_tokens_decoder().items()
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    if specials.legacy is not None:
        config |= {"add_bos_token": True, "add_eos_token": False, "legacy": specials.legacy}
    return config


def write_tokenizer(text_model: str, folder: Path, *, image_token: bool, slow_only: bool = False) -> int:
    """Write the tokenizer's files and return the id that ``<image>`` has, or would have as the next one."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build(text_model, image_token)
    specials = SPECIALS[text_model]
    write_json(folder / "tokenizer_config.json", tokenizer_config(text_model, tokenizer))
    named = {name: token for name, token in token_names(specials).items() if name.endswith("_token") and token}
    write_json(folder / "special_tokens_map.json", named)
    if specials.legacy is not None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    if text_model == "qwen2":
        tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which Qwen2 has beside tokenizer.json
    if specials.legacy is None or not slow_only:
        tokenizer.save(str(folder / "tokenizer.json"))
    return token_ids(text_model)[IMAGE_TOKEN]


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
