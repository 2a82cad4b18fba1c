"""A checkpoint's tokenizer as the content of a tokenizer.json, converted from sentencepiece if that file is missing."""

import errno
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llava_api.checkpoints.files import read_json
from llava_api.errors import StartupError

Tokenizer = dict[str, Any]
"""The content of a tokenizer.json."""
PREFIX = "▁"
"""SentencePiece's mark for a space."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FILES = (
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Raises StartupError if the folder has no tokenizer, or a damaged one."""
    settings = tokenizer_settings(folder)
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.model").stat().st_size:
        raise StartupError("tokenizer.model of the checkpoint is empty: download it again")
    slow = not (folder / "tokenizer.json").is_file()
    if not slow:
        tokenizer = read_json(folder, "tokenizer.json")
    elif (folder / "tokenizer.model").is_file() or (folder / "vocab.json").is_file():
        tokenizer = convert(folder)
    else:
        raise StartupError("the checkpoint has no tokenizer.json and no tokenizer.model")
    if not isinstance(tokenizer.get("model"), dict) or not isinstance(tokenizer.get("added_tokens"), list):
        raise StartupError("the checkpoint's tokenizer.json is damaged")
    if not all(is_added_token(token) for token in tokenizer["added_tokens"]):
        raise StartupError("the checkpoint's tokenizer.json is damaged: an added token has no text or no id")
    if not tokenizer["model"].get("vocab"):
        raise StartupError("the checkpoint's tokenizer has no vocabulary: its files are empty or only half downloaded")
    legacy = dummy_prefix(settings, slow)
    return tokenizer if legacy is None else with_dummy_prefix(tokenizer, everywhere=legacy)


def is_added_token(token: object) -> bool:
    if not isinstance(token, dict):
        return False
    return isinstance(token.get("content"), str) and type(token.get("id")) is int and token["id"] >= 0


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; missing values are those of special_tokens_map.json, or Llama's."""
    settings = read_json(folder, "tokenizer_config.json")
    if (folder / "tokenizer.model").is_file():
        named = read_json(folder, "special_tokens_map.json")
        for name, usual in (("bos_token", "<s>"), ("eos_token", "</s>"), ("tokenizer_class", "LlamaTokenizer")):
            settings.setdefault(name, named.get(name, usual))
    return settings


def convert(folder: Path) -> Tokenizer:
    """A tokenizer.json from ``tokenizer.model`` (or GPT-2's two files), by transformers' own conversion."""
    try:
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as scratch:
            # config.json is left out, because transformers does not know its model type (llava_llama).
            for pattern in FILES:
                for file in filter(Path.is_file, folder.glob(pattern)):
                    shutil.copy(file, scratch)
            class_file = Path(scratch) / "tokenizer_config.json"
            class_file.write_text(json.dumps(tokenizer_settings(folder)))
            loaded = AutoTokenizer.from_pretrained(scratch)
            content: Tokenizer = json.loads(loaded.backend_tokenizer.to_str())
            known = declared(Path(scratch))
            # The conversion also lists pieces of the model, at which the slow tokenizer does not cut a text.
            content["added_tokens"] = [
                token for token in content["added_tokens"] if token["content"] in known or not token["content"].strip()
            ]
    except (ImportError, OSError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, OSError) and (error.errno in NO_ROOM or "temporary directory" in str(error)):
            raise StartupError(
                "the checkpoint's slow tokenizer cannot be converted: there is no room in the temporary folder (TMPDIR)"
            ) from error
        raise StartupError(
            f"the checkpoint's slow tokenizer cannot be read ({type(error).__name__}): transformers and sentencepiece "
            "must be installed, and tokenizer.model be whole"
        ) from error
    return content


def declared(folder: Path) -> set[str]:
    """The special and added tokens that a slow tokenizer's small files name."""
    settings = {**read_json(folder, "special_tokens_map.json"), **read_json(folder, "tokenizer_config.json")}
    named = [settings.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")]
    more = [*(settings.get("additional_special_tokens") or []), *(settings.get("added_tokens_decoder") or {}).values()]
    texts = {token_text(value) for value in (*named, *more)} | {*read_json(folder, "added_tokens.json")}
    return {"<unk>", *(text for text in texts if text is not None)}


def with_image_token(tokenizer: Tokenizer) -> tuple[Tokenizer, int]:
    """The tokenizer with the special token ``<image>``, added with the next free id if it is missing; and its id."""
    ids = {token["content"]: int(token["id"]) for token in tokenizer["added_tokens"]}
    if "<image>" in ids:
        return tokenizer, ids["<image>"]
    vocabulary = tokenizer["model"]["vocab"]
    # A Unigram model lists its pieces in order; others map piece to id.
    highest = max(vocabulary.values()) if isinstance(vocabulary, dict) else len(vocabulary) - 1
    token_id = max(highest, *ids.values(), -1) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [*tokenizer["added_tokens"], {"id": token_id, "content": "<image>", **flags}]
    return {**tokenizer, "added_tokens": added}, token_id


def token_text(value: object) -> str | None:
    """A special token of tokenizer_config.json, written as text or as an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def bos_token(settings: dict[str, Any], tokenizer: Tokenizer) -> str | None:
    """The BOS token if the tokenizer writes one; ``add_bos_token`` false and Qwen's null mean none.

    ``settings``: tokenizer_config.json.
    """
    bos = token_text(settings.get("bos_token"))
    if bos is None or settings.get("add_bos_token") is False:
        return None
    if settings.get("add_bos_token") is True or settings.get("tokenizer_class", "").startswith("Llama"):
        return bos
    return bos if bos in json.dumps(tokenizer.get("post_processor")) else None


def dummy_prefix(settings: dict[str, Any], slow: bool) -> bool | None:
    """``legacy`` of tokenizer_config.json, which defaults to true for a slow Llama tokenizer."""
    legacy = settings.get("legacy")
    if legacy is None and slow:
        return True
    return legacy if isinstance(legacy, bool) else None


def with_dummy_prefix(tokenizer: Tokenizer, everywhere: bool) -> Tokenizer:
    """The tokenizer with Llama's dummy prefix where ``LlamaTokenizer`` puts it: at the start and after every special
    token (``legacy`` true), or only at the start.

    Conversions do not always write what the flag says: transformers 5.19 turns ``legacy`` true into a Metaspace that
    leaves the prefix out before a space. A tokenizer without a dummy prefix is returned unchanged.
    """
    if not puts_dummy_prefix(tokenizer):
        return tokenizer
    if everywhere:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": PREFIX}
        prepend = {"type": "Prepend", "prepend": PREFIX}
        return {
            **tokenizer,
            "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
            "pre_tokenizer": None,
        }
    metaspace = {"type": "Metaspace", "replacement": PREFIX, "prepend_scheme": "first", "split": False}
    return {**tokenizer, "normalizer": None, "pre_tokenizer": metaspace}


def puts_dummy_prefix(tokenizer: Tokenizer) -> bool:
    """Whether it has one of the two forms that transformers writes for Llama's sentencepiece model."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    kinds = [step.get("type") for step in normalizer.get("normalizers", [])]
    return kinds == ["Prepend", "Replace"] or pre_tokenizer.get("prepend_scheme") in ("first", "always")


def chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint's own template, from any of the files in which versions of transformers keep it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    for held in (read_json(folder, "chat_template.json"), read_json(folder, "processor_config.json"), settings):
        template = held.get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None
