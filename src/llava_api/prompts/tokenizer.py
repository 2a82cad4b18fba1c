"""A checkpoint's tokenizer, with one promise: typed text never becomes a special token.

Special tokens get names that cannot be typed (a random marker, new in every process), and only a prompt's own templates
write those names. Everything else is left to the tokenizer. Its rules about spaces beside special tokens hold, because
each piece between two images is encoded in one call, as in LLaVA's own code.
"""

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llava_api.errors import StartupError
from llava_api.prompts.segments import SpecialToken

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TextTokenizer:
    """A tokenizer from the content of a tokenizer.json."""

    def __init__(self, tokenizer_json: str, bos_token: str | None) -> None:
        try:
            settings = json.loads(tokenizer_json)
            self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in settings["added_tokens"]}
            self.special_tokens = {token["id"] for token in settings["added_tokens"] if token.get("special")}
            """Those that the engine leaves out of an answer's text."""
        except (ValueError, KeyError, TypeError) as error:
            raise StartupError("the checkpoint's tokenizer.json is damaged") from error
        # Left over from training; both would change what the model is shown.
        settings["truncation"] = settings["padding"] = None
        self.prefix, self.prefix_everywhere = take_dummy_prefix(settings)
        self.secret = f"\uf8fe{secrets.token_hex(12)}"
        self.markers: dict[str, str] = {}
        self.pieces: set[str] = set()
        """Those that are pieces of the vocabulary rather than added tokens."""
        for token in settings["added_tokens"]:
            text = token["content"]
            if not text.strip():
                # A run of spaces, as MPT's tokenizer has, may be typed.
                continue
            token["content"] = self.markers[text] = self.new_marker()
            # Matched in the text as it is written, as LLaVA's slow tokenizers do.
            token["normalized"] = False
        hide_vocabulary(settings["model"], self.markers)
        try:
            self.tokenizer = Tokenizer.from_str(json.dumps(settings))
        except Exception as error:  # The library raises a plain Exception with its parser's words.
            raise StartupError(f"the checkpoint's tokenizer.json is damaged: {error}") from error
        # BOS is written here, and offsets must include spaces.
        self.tokenizer.post_processor = None
        self.longest_piece = max(map(len, self.tokenizer.get_vocab()), default=1)
        """Characters of the longest token: a text of n times that length has at least n tokens."""
        self.real_ids: dict[int, int] = {}
        for text, marker in self.markers.items():
            self.remember(marker, self.special_ids[text])
        self.bos_token = bos_token
        self.bos_id = self.token_id(bos_token) if bos_token is not None else None
        self.names_by_id = {token: text for text, token in self.special_ids.items()}
        known = [self.tokenizer.token_to_id(piece) or 0 for piece in self.tokenizer.get_vocab()]
        self.size = max([*self.special_ids.values(), *(token for token in known if token not in self.real_ids)]) + 1
        """Token ids are 0 to one less."""
        self.byte_letters = byte_letters() if has_byte_level(settings.get("decoder")) else None

    def new_marker(self) -> str:
        """A name that cannot be typed, for one more special token."""
        return f"{self.secret}{len(self.markers)}\uf8ff"

    def remember(self, marker: str, real_id: int) -> None:
        """Map the id that this tokenizer gives ``marker`` to ``real_id``."""
        found = self.tokenizer.token_to_id(marker)
        if found is None:
            raise StartupError("the checkpoint's tokenizer.json is damaged")
        self.real_ids[found] = real_id

    def reserve(self, texts: Iterable[str]) -> None:
        """Let templates name entries of the vocabulary that tokenizer.json does not list as special tokens.

        Called at start-up only: a tokenizer that other threads use must not change.
        """
        for text in texts:
            real_id = self.tokenizer.token_to_id(text)
            if text in self.markers or real_id is None:
                continue
            marker = self.new_marker()
            self.tokenizer.add_tokens([AddedToken(marker, normalized=False, special=True)])
            self.markers[text] = marker
            self.pieces.add(text)
            self.special_ids[text] = real_id
            self.remember(marker, real_id)

    def token_id(self, token: str) -> int | None:
        """The id of a special token or of an entry of the vocabulary; None if there is none."""
        found = self.special_ids.get(token)
        return found if found is not None else self.tokenizer.token_to_id(token)

    def knows(self, token: str) -> bool:
        return self.token_id(token) is not None

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special_tokens

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of one token. For a special token it is its name; a token may be only part of a letter."""
        name = self.names_by_id.get(token_id)
        if name is not None:
            return name.encode()
        piece = self.piece(token_id)
        if self.byte_letters is not None:
            return bytes(self.byte_letters.get(letter, 0x3F) for letter in piece)
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte is not None else piece.replace("▁", " ").encode("utf-8", "replace")

    def piece(self, token_id: int) -> str:
        """A token as tokenizer.json writes it; empty if the model has none of that id."""
        name = self.names_by_id.get(token_id)
        if name is not None or token_id in self.real_ids:
            return name or ""
        return self.tokenizer.id_to_token(token_id) or ""

    def text(self, token_ids: Iterable[int]) -> str:
        """The text of tokens, without the dummy prefix. Special tokens are their names."""
        text = b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.prefix else text

    def encode(self, pieces: Sequence[str | SpecialToken]) -> list[int]:
        """Ids of a piece between two images, text and special tokens, without BOS."""
        # A batch, because ``encode`` holds the GIL. The fast variant only leaves out the offsets.
        encoded = self.tokenizer.encode_batch_fast([self.written(pieces)[0]], add_special_tokens=False)[0]
        return [self.real_ids.get(token, token) for token in encoded.ids]

    def lengths(self, several: Sequence[Sequence[str | SpecialToken]]) -> list[int]:
        """How many ids ``encode`` returns for each; all processors count together."""
        texts = [self.written(pieces)[0] for pieces in several]
        return [len(encoded) for encoded in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def sources(self, pieces: Sequence[str | SpecialToken]) -> list[int]:
        """For each id that ``encode`` returns, the index of the piece in which its token begins."""
        text, starts = self.written(pieces)
        encoded = self.tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return [bisect_right(starts, start) - 1 for start, _ in encoded.offsets]

    def written(self, pieces: Sequence[str | SpecialToken]) -> tuple[str, list[int]]:
        """The text that is encoded for ``pieces``, and where each of them begins in it."""
        text, starts = "", []
        prefix_due = True
        for piece in pieces:
            starts.append(len(text))
            name = piece.text if isinstance(piece, SpecialToken) else None
            if name in self.markers and name not in self.pieces:
                text += self.markers[name]
                prefix_due = self.prefix_everywhere
                continue
            # A special token that the checkpoint does not have is ordinary text.
            written = piece if isinstance(piece, str) else self.markers.get(piece.text, piece.text)
            if written and prefix_due:
                text += self.prefix
                prefix_due = False
            text += written
        return text, starts

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text by itself, after BOS. Blocks."""
        return self.with_bos(self.encode([text]))

    def with_bos(self, token_ids: list[int]) -> list[int]:
        """``token_ids`` after BOS, if the tokenizer has one and a chat template has not written it already."""
        return token_ids if self.bos_id is None or token_ids[:1] == [self.bos_id] else [self.bos_id, *token_ids]


def take_dummy_prefix(settings: dict[str, Any]) -> tuple[str, bool]:
    """Remove Llama's dummy prefix from ``settings``. Returns it, and whether it also follows special tokens.

    ``TextTokenizer.encode`` writes it where sentencepiece does. tokenizer.json's own rules leave it out if a text
    starts with a space (Metaspace), and add it after pieces of the vocabulary that look like special tokens.
    """
    pre_tokenizer, normalizer = settings.get("pre_tokenizer") or {}, settings.get("normalizer") or {}
    if pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
        return str(pre_tokenizer.get("replacement", "▁")), False
    steps = normalizer.get("normalizers") or []
    if [step.get("type") for step in steps] == ["Prepend", "Replace"]:
        settings["normalizer"] = steps[1]
        return str(steps[0]["prepend"]), True
    return "", False


def has_byte_level(decoder: dict[str, Any] | None) -> bool:
    """Whether pieces are written in GPT-2's alphabet of bytes."""
    steps = [decoder or {}, *((decoder or {}).get("decoders") or ())]
    return any(step.get("type") == "ByteLevel" for step in steps)


def byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: letter -> byte. Printable bytes are their own letters; the others have letters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def hide_vocabulary(model: dict[str, Any], markers: dict[str, str]) -> None:
    """Give special tokens their secret names in the vocabulary too, if typed text could match them there.

    BPE reaches an entry only by merges, none of which leads to a special token; a Unigram model takes any piece it has.
    """
    if model.get("type") == "BPE" or "merges" in model:
        return
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        model["vocab"] = [[markers.get(piece, piece), score] for piece, score in vocabulary]
    elif isinstance(vocabulary, dict):
        model["vocab"] = {markers.get(piece, piece): token for piece, token in vocabulary.items()}
    if model.get("unk_token") in markers:
        model["unk_token"] = markers[model["unk_token"]]
