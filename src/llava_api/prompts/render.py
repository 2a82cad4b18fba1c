"""A conversation -> token ids, with room for each image.

As in the original (``tokenizer_image_token`` in ``mm_utils.py``), the prompt is cut at the images and each piece is
tokenized separately. BOS comes once, at the very start, if the tokenizer has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

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
    pieces, images = cut_at_images(segments)
    first, *others = map(tokenizer.encode, pieces)
    ids = tokenizer.with_bos(first)
    placeholders: list[Placeholder] = []
    for image, following in zip(images, others, strict=True):
        placeholders.append(Placeholder(image, len(ids), image_lengths[image]))
        ids += [image_token_id] * image_lengths[image] + following
    return RenderedPrompt(ids, tuple(placeholders))


def count_text_tokens(prompts: Sequence[Sequence[Segment]], tokenizer: TextTokenizer) -> list[int]:
    """How many tokens ``tokenize`` makes of each prompt besides those of images."""
    cut = [cut_at_images(segments)[0] for segments in prompts]
    lengths = iter(tokenizer.lengths([piece for pieces in cut for piece in pieces]))
    bos = len(tokenizer.with_bos([]))
    counts = [sum(islice(lengths, len(pieces))) + bos for pieces in cut]
    # A chat template may have written BOS itself.
    written = [segments[:1] == [SpecialToken(tokenizer.bos_token or "")] for segments in prompts]
    return [count - (bos if has_bos else 0) for count, has_bos in zip(counts, written, strict=True)]


def cut_at_images(segments: Sequence[Segment]) -> tuple[list[list[str | SpecialToken]], list[int]]:
    """What is before, between and after the images, and the images' indexes."""
    pieces: list[list[str | SpecialToken]] = [[]]
    images: list[int] = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            images.append(segment.index)
            pieces.append([])
        else:
            pieces[-1].append(segment)
    return pieces, images


def sources(segments: Sequence[Segment], tokenizer: TextTokenizer, prompt: RenderedPrompt) -> list[int]:
    """For each token of ``prompt``, made of ``segments``, the index of the segment in which it begins; BOS: -1."""
    found: list[int] = []
    first = 0
    pieces, _ = cut_at_images(segments)
    for number, piece in enumerate(pieces):
        found += [first + index for index in tokenizer.sources(piece)]
        first += len(piece)
        if number < len(prompt.placeholders):
            found += [first] * prompt.placeholders[number].length
            first += 1
    return [-1] * (len(prompt.token_ids) - len(found)) + found
