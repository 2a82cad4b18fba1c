"""How likely each choice is as the answer, by the model itself: no grammar excludes any token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from llava_api.chat.sampling import context_length_exceeded
from llava_api.engine.base import GenerationRequest, Sampling
from llava_api.errors import InvalidRequest
from llava_api.protocol.chat_reply import ScoredChoice

MOST_SCORED = 256
"""Each choice is a request to the engine, in which only the choice's tokens and a block of the prefix cache are new."""
MOST_CHARACTERS = 1_000_000
"""Of the prompt, once for each choice: it is tokenized with each of them."""


def check_scored(choices: int, characters: int) -> None:
    """Raises InvalidRequest for choices that would take too long."""
    if choices > MOST_SCORED or choices * characters > MOST_CHARACTERS:
        raise InvalidRequest(
            f"With log-probabilities there may be up to {MOST_SCORED} choices, and {MOST_CHARACTERS} characters of the "
            "prompt times choices: send fewer choices, or leave logprobs out.",
            param="logprobs",
        )


@dataclass(frozen=True, slots=True)
class ScoredPrompts:
    """The prompt with each choice after it."""

    start: int
    """Where the choices begin."""
    prompts: list[list[int]]

    @property
    def new_tokens(self) -> int:
        return sum(len(ids) - self.start for ids in self.prompts)

    def requests(self, request: GenerationRequest) -> tuple[GenerationRequest, ...]:
        """For the log-probabilities of the choices' tokens. ``request`` is for the answer."""
        return tuple(
            replace(
                request,
                request_id=f"{request.request_id}-choice-{place}",
                token_ids=ids,
                sampling=Sampling(0.0, scored_tail=len(ids) - self.start),
                max_tokens=1,
                choices=1,
            )
            for place, ids in enumerate(self.prompts)
        )


def scored_prompts(prompt: list[int], prompts: list[list[int]], max_model_len: int, param: str) -> ScoredPrompts:
    """``prompts``: ``prompt`` with each choice after it, one at least. Raises InvalidRequest if one does not fit.

    A tokenizer may join a choice's first letters with the prompt's last ones; all choices then begin before those.
    """
    longest = max(map(len, prompts))
    if longest >= max_model_len:
        raise context_length_exceeded(max_model_len, param, f"{longest} tokens with the longest choice")
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(prompt, *prompts, strict=False))
    return ScoredPrompts(sum(1 for _ in same), prompts)


def scored_choices(
    choices: Sequence[str], requests: Sequence[GenerationRequest], logprobs: Sequence[float]
) -> list[ScoredChoice]:
    """In the order of the request. The probabilities' sum is 1.

    If a choice is how a longer one begins (1 and 12), only what the longer one leaves of its probability is its own.
    """
    highest = max(logprobs)
    # Only the choices are compared, because a prompt may have many thousands of tokens.
    written = [request.token_ids[-(request.sampling.scored_tail or 0) :] for request in requests]
    own: dict[int, float] = {}
    for place in sorted(range(len(requests)), key=lambda place: -len(written[place])):
        ids = written[place]
        longer = sum(share for other, share in own.items() if written[other][: len(ids)] == ids)
        own[place] = max(0.0, math.exp(logprobs[place] - highest) - longer)
    total = sum(own.values())
    return [
        ScoredChoice(choice=choice, logprob=logprobs[place], probability=own[place] / total)
        for place, choice in enumerate(choices)
    ]
