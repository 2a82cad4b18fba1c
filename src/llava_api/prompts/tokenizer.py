"""A checkpoint's tokenizer, with one promise: what a person typed never becomes a special token.

Special tokens are looked for under names that nobody can type (a random marker, new in every process), and only a
prompt's own templates write those names. All else is the tokenizer's: its rules about spaces beside special tokens
hold, since each piece between two pictures is encoded in one go, as LLaVA's own code does.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llava_api.errors import StartupError
from llava_api.prompts.segments import Special


class TextTokenizer:
    """A tokenizer from the content of a tokenizer.json."""

    def __init__(self, tokenizer_json: str, bos_token: str | None) -> None:
        try:
            settings = json.loads(tokenizer_json)
            self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in settings["added_tokens"]}
        except (ValueError, KeyError, TypeError) as error:
            raise StartupError("the checkpoint's tokenizer.json is damaged") from error
        self.prefix = take_first_prefix(settings)
        self.secret = f"\uf8fe{secrets.token_hex(12)}"
        self.markers: dict[str, str] = {}
        for token in settings["added_tokens"]:
            text = token["content"]
            if not text.strip():
                # A run of spaces, as MPT's tokenizer has: nothing that a person must not write.
                continue
            token["content"] = self.markers[text] = self.new_marker()
            # Matched in the text as it is written, as LLaVA's slow tokenizers do.
            token["normalized"] = False
        self.tokenizer = Tokenizer.from_str(json.dumps(settings))
        self.real_ids: dict[int, int] = {}
        for text, marker in self.markers.items():
            self.remember(marker, self.special_ids[text])
        self.bos_id = self.token_id(bos_token) if bos_token is not None else None

    def new_marker(self) -> str:
        """A name that nobody can type, for one more special token."""
        return f"{self.secret}{len(self.markers)}\uf8ff"

    def remember(self, marker: str, real_id: int) -> None:
        """The id that this tokenizer gives ``marker`` stands for ``real_id``."""
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
            self.special_ids[text] = real_id
            self.remember(marker, real_id)

    def token_id(self, token: str) -> int | None:
        """The id of a special token or of an entry of the vocabulary; None where there is none."""
        found = self.special_ids.get(token)
        return found if found is not None else self.tokenizer.token_to_id(token)

    def knows(self, token: str) -> bool:
        return self.token_id(token) is not None

    def encode(self, pieces: Sequence[str | Special]) -> list[int]:
        """Ids of what stands between two pictures: text and the special tokens in it; no BOS."""
        text = "".join(self.written(piece) for piece in pieces)
        if text and not text.startswith(self.secret):
            text = self.prefix + text
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.real_ids.get(token, token) for token in ids]

    def written(self, piece: str | Special) -> str:
        """A special token under its secret name; one that the checkpoint does not have is ordinary text."""
        return self.markers.get(piece.text, piece.text) if isinstance(piece, Special) else piece


def take_first_prefix(settings: dict[str, Any]) -> str:
    """The dummy prefix of a tokenizer that puts one at the very start of a text, taken out of ``settings``.

    ``TextTokenizer`` writes it, because Metaspace leaves it out where the text starts with a space. LLaVA's own code
    (``LlamaTokenizer`` with ``legacy`` false) does not.
    """
    pre_tokenizer = settings.get("pre_tokenizer") or {}
    if pre_tokenizer.get("type") != "Metaspace" or pre_tokenizer.get("prepend_scheme") != "first":
        return ""
    pre_tokenizer["prepend_scheme"] = "never"
    return str(pre_tokenizer.get("replacement", "▁"))
