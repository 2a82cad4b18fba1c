"""``POST /v1/completions``: a plain text is continued, without messages and images."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from llava_api.protocol.chat_reply import PromptLogprobs, ScoredChoice, Usage
from llava_api.protocol.refused import NOT_LLAVA, VLLM, VLLM_IGNORED, WITHOUT_EFFECT
from llava_api.protocol.sampling import ChoicesRequest, MaxTokens, TokenId, none_for_false
from llava_api.protocol.wire import JSON_PATHS, WireObject, is_none

EndReason = Literal["stop", "length"]
Tokens = Annotated[list[TokenId], Field(fail_fast=True)]
Prompt = Annotated[
    str | Tokens | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[Tokens], Field(fail_fast=True)],
    JSON_PATHS,
]


class CompletionRequest(ChoicesRequest):
    refused: ClassVar = {
        **NOT_LLAVA,
        **VLLM,
        "max_completion_tokens": "max_completion_tokens is called max_tokens here.",
        "suffix": "LLaVA continues a text and cannot fill a gap in it: leave suffix out.",
        "messages": "messages belong to /v1/chat/completions: send prompt here.",
        "response_format": "response_format belongs to /v1/chat/completions: send the request there.",
        "tools": "tools belong to /v1/chat/completions: send the request there.",
    }
    ignored: ClassVar = {**WITHOUT_EFFECT, **VLLM_IGNORED}

    prompt: Prompt
    """A text, token ids, or a list of either. The model is shown a text unchanged, after the BOS token; what looks like
    a special token in it is ordinary text. Token ids are used unchanged."""
    max_tokens: MaxTokens | None = None
    """Most tokens of each answer; default: 16. -1, -2 and more than fit: as many as fit; 0: none."""
    echo: bool | None = None
    """Send the prompt before the answer."""
    logprobs: Annotated[int | None, BeforeValidator(none_for_false)] = Field(None, ge=0, le=5)
    """Send log-probabilities and this number of most likely tokens at each position; with ``echo`` the prompt's too."""
    best_of: int | None = Field(None, ge=1)
    """Accepted if it equals ``n``: answers are not ranked."""


class CompletionLogprobs(WireObject):
    """Each list has one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Null for the first token of a prompt, which has no probability."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters from the beginning of the answer's text, over all chunks."""


class CompletionChoice(WireObject):
    index: int
    """The prompt's index times n, plus the answer's."""
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: EndReason
    choice_logprobs: list[ScoredChoice] | None = Field(default=None, exclude_if=is_none)
    """With ``structured_outputs.choice`` and ``logprobs``, for a prompt that is a text."""
    prompt_logprobs: PromptLogprobs | None = Field(default=None, exclude_if=is_none)
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """With ``return_token_ids``."""
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """With ``return_token_ids``."""


class Completion(WireObject):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class CompletionChunkChoice(WireObject):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: EndReason | None = None
    choice_logprobs: list[ScoredChoice] | None = Field(default=None, exclude_if=is_none)
    """In a choice's last chunk."""
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """In a choice's last chunk, with ``return_token_ids``."""


class CompletionChunk(WireObject):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    system_fingerprint: str


class CompletionChunkWithUsage(CompletionChunk):
    """With ``stream_options.include_usage``. Usage is null except in the last chunk.

    With ``continuous_usage_stats`` every chunk has the counts so far.
    """

    usage: Usage | None = None
