"""How likely each choice is as the answer, by the model itself: no grammar excludes any token."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llava_api.chat.sampling import context_length_exceeded
from llava_api.engine.base import GenerationRequest, Sampling
from llava_api.errors import InvalidRequest
from llava_api.protocol.chat_reply import ScoredChoice

MOST_SCORED = 256
"""Each choice is a request to the engine."""
MOST_SIZE = 1_000_000
"""Characters and image tokens of the prompt, once for each choice: the prompt is tokenized with each of them, and
computed as a whole if the prefix cache has the choice's own tokens."""
TOKEN_BYTES = 40
"""Memory that a token's id takes, with its place in a list."""


def check_scored(choices: int, size: int) -> None:
    """``size``: of the prompt, in characters and image tokens. Raises InvalidRequest for what would take too long."""
    if choices > MOST_SCORED or choices * size > MOST_SIZE:
        raise InvalidRequest(
            f"With log-probabilities there may be up to {MOST_SCORED} choices, and {MOST_SIZE} characters and image "
            "tokens of the prompt times choices: send fewer choices, or leave logprobs out.",
            param="logprobs",
        )


@dataclass(frozen=True, slots=True)
class ScoredPrompts:
    """The prompt with each choice after it. Written out they may be a million tokens."""

    begun: Sequence[int] = ()
    """What all of them begin with."""
    endings: Sequence[list[int]] = ()
    """How each goes on, with one token at least."""

    @property
    def tokens(self) -> int:
        return sum(len(self.begun) + len(ending) for ending in self.endings)

    @property
    def held_bytes(self) -> int:
        return TOKEN_BYTES * sum(map(len, self.endings))

    def request(self, request: GenerationRequest, place: int) -> GenerationRequest:
        """For the log-probabilities of one choice's tokens. ``request`` is for the answer."""
        ending = self.endings[place]
        return replace(
            request,
            request_id=f"{request.request_id}-choice-{place}",
            token_ids=[*self.begun, *ending],
            sampling=Sampling(0.0, scored_tail=len(ending)),
            max_tokens=1,
            choices=1,
        )


def scored_prompts(prompt: list[int], prompts: Iterable[list[int]], max_model_len: int, param: str) -> ScoredPrompts:
    """``prompts``: ``prompt`` with each choice after it, one at least, written one by one to save memory. Blocks.

    A tokenizer may join a choice's first letters with the prompt's last ones; all choices then begin before those.
    Raises InvalidRequest if a prompt does not fit, or does not differ from ``prompt``, because a chat template has left
    out a choice of white space.
    """
    found: list[tuple[int, list[int]]] = []
    for ids in prompts:
        same = next((place for place, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other), None)
        same = min(len(prompt), len(ids)) if same is None else same
        found.append((same, ids[same:]))
    start = min(same for same, _ in found)
    endings = [prompt[start:same] + ending for same, ending in found]
    longest = start + max(map(len, endings))
    if longest >= max_model_len:
        raise context_length_exceeded(max_model_len, param, f"{longest} tokens with the longest choice")
    if not all(endings):
        raise InvalidRequest(
            "This model's prompt leaves out a choice of white space: leave the choice or logprobs out.",
            param="logprobs",
        )
    return ScoredPrompts(prompt[:start], endings)


def scored_choices(
    choices: Sequence[str], endings: Sequence[list[int]], logprobs: Sequence[float]
) -> list[ScoredChoice]:
    """In the order of the request. The probabilities' sum is 1. Blocks.

    If a choice is how a longer one begins (1 and 12), only what the longer one leaves of its probability is its own.
    """
    highest = max(logprobs)
    own: dict[int, float] = {}
    for place in sorted(range(len(endings)), key=lambda place: -len(endings[place])):
        ids = endings[place]
        longer = sum(share for other, share in own.items() if endings[other][: len(ids)] == ids)
        own[place] = max(0.0, math.exp(logprobs[place] - highest) - longer)
    total = sum(own.values())
    return [
        ScoredChoice(choice=choice, logprob=logprobs[place], probability=own[place] / total)
        for place, choice in enumerate(choices)
    ]
