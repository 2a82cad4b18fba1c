"""A conversation -> token ids, with room for each picture.

Rules of the original (``tokenizer_image_token`` in ``mm_utils.py``): the prompt is cut at the pictures, each
piece is tokenized on its own, and BOS stands once, at the very start, where the tokenizer has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.prompts.segments import Picture, Segment, Special
from llava_api.prompts.tokenizer import TextTokenizer


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


def tokenize(
    segments: Sequence[Segment], tokenizer: TextTokenizer, image_token_id: int, image_lengths: Sequence[int]
) -> RenderedPrompt:
    """Token ids with ``image_lengths[i]`` image tokens where picture i stands."""
    ids: list[int] = []
    placeholders: list[Placeholder] = []
    pieces: list[str | Special] = []
    for segment in segments:
        if not isinstance(segment, Picture):
            pieces.append(segment)
            continue
        ids += tokenizer.encode(pieces)
        pieces = []
        length = image_lengths[segment.index]
        placeholders.append(Placeholder(segment.index, len(ids), length))
        ids += [image_token_id] * length
    ids += tokenizer.encode(pieces)
    return with_bos(ids, placeholders, tokenizer.bos_id)


def with_bos(ids: list[int], placeholders: list[Placeholder], bos_id: int | None) -> RenderedPrompt:
    """BOS exactly once: a chat template may have written it already."""
    if bos_id is None or ids[:1] == [bos_id]:
        return RenderedPrompt(ids, tuple(placeholders))
    moved = (Placeholder(place.image, place.offset + 1, place.length) for place in placeholders)
    return RenderedPrompt([bos_id, *ids], tuple(moved))
