"""A sample -> token ids, and which of them are learned.

The ids are the server's for the same conversation (``prompts/``). Learned are an answer's words and the token that ends
it, as in LLaVA's ``preprocess_v1`` and its siblings; everything else is context.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import Sample
from llava_api.prompts.render import RenderedPrompt, sources, tokenize
from llava_api.prompts.segments import ImageSlot, Segment, SpecialToken


@dataclass(frozen=True, slots=True)
class Encoded:
    prompt: RenderedPrompt
    learned: list[bool]
    """For each token."""


def count_tokens(sample: Sample, model: ModelInput, image_lengths: Sequence[int]) -> int:
    """``image_lengths``: tokens of each of the sample's images."""
    segments = [segment for segment, _ in marked_segments(sample, model)]
    return len(tokenize(segments, model.tokenizer, model.checkpoint.image_token_id, image_lengths).token_ids)


def encode(sample: Sample, model: ModelInput, image_lengths: Sequence[int]) -> Encoded:
    """``image_lengths``: tokens of each of the sample's images."""
    marked = marked_segments(sample, model)
    segments = [segment for segment, _ in marked]
    prompt = tokenize(segments, model.tokenizer, model.checkpoint.image_token_id, image_lengths)
    learned = [source >= 0 and marked[source][1] for source in sources(segments, model.tokenizer, prompt)]
    return Encoded(prompt, learned)


def marked_segments(sample: Sample, model: ModelInput) -> list[tuple[Segment, bool]]:
    """The whole conversation, and of each segment whether its tokens are learned."""
    if model.plain:
        # LLaVA's preprocess_plain: the question's words are left out, a newline ends the caption.
        question, answer = sample.turns
        return [*((ImageSlot(image), False) for image in question.images), (f"{answer.text}\n", True)]
    family = model.family
    system, *turns = family.parts(sample.system, sample.turns, complete=True)
    marked: list[tuple[Segment, bool]] = [(segment, False) for segment in system]
    for turn, segments in zip(sample.turns, turns, strict=True):
        ends = [
            place
            for place, segment in enumerate(segments)
            if isinstance(segment, SpecialToken) and segment.text in family.stop_tokens
        ]
        last = ends[-1] if turn.role == "assistant" else -1
        marked += [(segment, place <= last) for place, segment in enumerate(segments)]
    return marked
