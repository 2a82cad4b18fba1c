"""A conversation -> token ids, with room for each image.

As in the original (``tokenizer_image_token`` in ``mm_utils.py``), the prompt is cut at the images and each piece is
tokenized separately. BOS comes once, at the very start, if the tokenizer has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.prompts.segments import ImageSlot, Segment, SpecialToken
from llava_api.prompts.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The position of one image's tokens in the prompt."""

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
    """Token ids with ``image_lengths[i]`` image tokens in the place of image i."""
    ids: list[int] = []
    placeholders: list[Placeholder] = []
    pieces: list[str | SpecialToken] = []
    for segment in segments:
        if not isinstance(segment, ImageSlot):
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
    """Add BOS unless a chat template has already written it."""
    if bos_id is None or ids[:1] == [bos_id]:
        return RenderedPrompt(ids, tuple(placeholders))
    moved = (Placeholder(place.image, place.offset + 1, place.length) for place in placeholders)
    return RenderedPrompt([bos_id, *ids], tuple(moved))
