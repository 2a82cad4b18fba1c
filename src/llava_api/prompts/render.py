"""A conversation -> token ids, with room for each picture. No Jinja, no transformers.

Rules of the original (``tokenizer_image_token`` in ``mm_utils.py``): the prompt is cut at the pictures, each
piece is tokenized on its own, and BOS stands once, at the very start, where the tokenizer has one. What a person
typed is always ordinary text: only the family's own templates can make special tokens.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from llava_api.errors import StartupError
from llava_api.prompts.family import PromptFamily

SLOT = re.compile(r"\{(system|user|assistant)\}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: ``role`` is user or assistant; ``images`` are indexes into the request's pictures."""

    role: str
    text: str
    images: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Special:
    """A special token that a template asks for."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The place of one picture."""

    index: int


Segment = str | Special | Picture


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where one picture's tokens lie in the prompt."""

    image: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    token_ids: list[int]
    placeholders: tuple[Placeholder, ...]
    """In prompt order."""


class TextTokenizer:
    """A checkpoint's tokenizer.json, split in two: ordinary text on one side, named special tokens on the other."""

    def __init__(self, tokenizer_json: Path, bos_token: str | None) -> None:
        try:
            settings = json.loads(tokenizer_json.read_text(encoding="utf-8"))
        except OSError as error:
            raise StartupError("the checkpoint has no readable tokenizer.json") from error
        self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in settings["added_tokens"]}
        # Without its added tokens the tokenizer cannot find one in a person's text.
        settings["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(settings))
        self.bos_id = self.token_id(bos_token) if bos_token is not None else None

    def token_id(self, token: str) -> int | None:
        """The id of a special token or of an entry of the vocabulary; None where there is none."""
        found = self.special_ids.get(token)
        return found if found is not None else self.plain.token_to_id(token)

    def knows(self, token: str) -> bool:
        return self.token_id(token) is not None

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; no BOS."""
        ids: list[int] = self.plain.encode(text, add_special_tokens=False).ids
        return ids


def fill(template: str, specials: Sequence[str], slots: dict[str, list[Segment]]) -> list[Segment]:
    """A template's segments, its slots replaced; only template text is searched for special tokens."""
    pattern = "|".join(re.escape(special) for special in specials)
    segments: list[Segment] = []
    for position, piece in enumerate(SLOT.split(template)):
        if position % 2:
            segments.extend(slots[piece])
        elif pattern:
            for inner in re.split(f"({pattern})", piece):
                segments.append(Special(inner) if inner in specials else inner)
        else:
            segments.append(piece)
    return segments


def layout(family: PromptFamily, system: str | None, turns: Sequence[Turn]) -> list[Segment]:
    """The whole prompt as segments. The last turn must be a user's."""
    system_text = family.default_system if system is None else system
    head = fill(family.system, family.specials, {"system": [system_text]}) if system_text else []
    segments: list[Segment] = [] if family.system_in_first_user else list(head)
    first = True
    for turn in turns:
        if turn.role == "assistant":
            segments += fill(family.assistant, family.specials, {"assistant": [turn.text]})
            continue
        content: list[Segment] = list(head) if first and family.system_in_first_user else []
        first = False
        for image in turn.images:
            content += [Picture(image), "\n"]
        content.append(turn.text)
        segments += fill(family.user, family.specials, {"user": content})
    return segments


def as_text(segments: Sequence[Segment]) -> str:
    """The prompt as LLaVA's own code prints it, ``<image>`` for each picture."""
    parts = []
    for segment in segments:
        if isinstance(segment, Picture):
            parts.append("<image>")
        else:
            parts.append(segment.text if isinstance(segment, Special) else segment)
    return "".join(parts)


def tokenize(
    segments: Sequence[Segment], tokenizer: TextTokenizer, image_token_id: int, image_lengths: Sequence[int]
) -> RenderedPrompt:
    """Token ids with ``image_lengths[i]`` image tokens where picture i stands."""
    ids: list[int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    placeholders: list[Placeholder] = []
    pending = ""

    def flush() -> None:
        nonlocal pending
        if pending:
            ids.extend(tokenizer.encode(pending))
        pending = ""

    for segment in segments:
        if isinstance(segment, str):
            pending += segment
        elif isinstance(segment, Picture):
            flush()
            length = image_lengths[segment.index]
            placeholders.append(Placeholder(segment.index, len(ids), length))
            ids.extend([image_token_id] * length)
        else:
            special_id = tokenizer.token_id(segment.text)
            if special_id is None:
                pending += segment.text
            else:
                flush()
                ids.append(special_id)
    flush()
    return RenderedPrompt(ids, tuple(placeholders))
