"""The parts of a prompt before it is token ids: turns, and then text, special tokens and images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    """user or assistant."""
    parts: tuple[str | int, ...]
    """Texts, and indexes into the request's images, in the order in which they were sent."""

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[int]:
        return [part for part in self.parts if isinstance(part, int)]


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token that a template asks for."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of one image."""

    index: int


Segment = str | SpecialToken | ImageSlot
"""A ``str`` is ordinary text: nothing in it can become a special token or an image."""


Learnable = tuple[Segment, bool]
"""A segment, and whether a model that is trained learns to write it."""


def as_text(segments: Sequence[Segment]) -> str:
    """The prompt as LLaVA's own code prints it, ``<image>`` for each image."""
    parts = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            parts.append("<image>")
        else:
            parts.append(segment.text if isinstance(segment, SpecialToken) else segment)
    return "".join(parts)


def split_specials(text: str, specials: Sequence[str]) -> list[str]:
    """``text`` cut before and after each of ``specials``, the longest first; without empty pieces."""
    if not specials:
        return [text] if text else []
    pattern = "|".join(re.escape(special) for special in sorted(specials, key=len, reverse=True))
    return [piece for piece in re.split(f"({pattern})", text) if piece]
