"""A sample -> token ids, and which of them are learned.

The ids are the server's for the same conversation. Learned are an answer's words and the token that ends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.finetune.model_input import ModelInput
from llava_api.finetune.samples import Sample
from llava_api.prompts.render import RenderedPrompt, sources, tokenize
from llava_api.prompts.segments import ImageSlot, Learnable


@dataclass(frozen=True, slots=True)
class Encoded:
    prompt: RenderedPrompt
    learned: list[bool]
    """For each token."""


def encode(sample: Sample, model: ModelInput, image_lengths: Sequence[int]) -> Encoded:
    """``image_lengths``: tokens of each of the sample's images. Raises InvalidRequest; see ``learnable_segments``."""
    learnable = learnable_segments(sample, model)
    segments = [segment for segment, _ in learnable]
    prompt = tokenize(segments, model.tokenizer, model.checkpoint.image_token_id, image_lengths)
    learned = [source >= 0 and learnable[source][1] for source in sources(segments, model.tokenizer, prompt)]
    return Encoded(prompt, learned)


def learnable_segments(sample: Sample, model: ModelInput) -> list[Learnable]:
    """The whole conversation, and which of its segments are learned. Raises InvalidRequest."""
    if model.plain:
        # LLaVA's preprocess_plain: the question's words are left out, a newline ends the caption.
        question, answer = sample.turns
        return [*((ImageSlot(image), False) for image in question.images), (f"{answer.text}\n", True)]
    return model.family.answered(sample.system, sample.turns)
