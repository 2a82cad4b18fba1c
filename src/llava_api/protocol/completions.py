"""``POST /v1/completions``: plain text in, plain text out; no chat form and no pictures."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llava_api.protocol.chat import StreamOptions
from llava_api.protocol.refused import NOT_LLAVA, VLLM
from llava_api.protocol.sampling import Sampling, TokenId
from llava_api.protocol.usage import Usage
from llava_api.protocol.wire import JSON_PATHS, Wire

EndReason = Literal["stop", "length"]
Tokens = Annotated[list[TokenId], Field(fail_fast=True)]
Prompt = Annotated[
    str | Tokens | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[Tokens], Field(fail_fast=True)],
    JSON_PATHS,
]


class CompletionRequest(Sampling):
    refused: ClassVar = {
        **NOT_LLAVA,
        **VLLM,
        "max_completion_tokens": "max_completion_tokens is called max_tokens here.",
        "suffix": "LLaVA writes on, it does not fill in: leave suffix out.",
        "messages": "messages belong to /v1/chat/completions; here it is prompt.",
        "response_format": "response_format belongs to /v1/chat/completions: ask there.",
        "tools": "tools belong to /v1/chat/completions: ask there.",
    }

    model: str
    """A name of ``GET /v1/models``."""
    prompt: Prompt
    """A text, token ids, or a list of either. A text is shown to the model as it is, behind its BOS token; what looks
    like a special token in it is ordinary text. Token ids are taken as they are."""
    max_tokens: int | None = Field(None, ge=0)
    """Most tokens of each answer; default: 16. 0 needs ``echo``."""
    echo: bool | None = None
    """Send the prompt before the answer."""
    logprobs: int | None = Field(None, ge=0, le=5)
    """Send log-probabilities, and so many of the likeliest tokens at each place; with ``echo`` the prompt's too."""
    best_of: int | None = Field(None, ge=1)
    """Accepted where it equals ``n``: answers are not ranked."""
    stream: bool | None = None
    """Send the answer as Server-Sent Events while it is made."""
    stream_options: StreamOptions | None = None
    """For streams only."""
    user: str | None = None
    """Accepted and not used."""


class CompletionLogprobs(Wire):
    """One entry a token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Null for the first token of a prompt, of which nothing is known."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters from the beginning of ``text``, over all chunks."""


class CompletionChoice(Wire):
    index: int
    """Prompt's index times n, plus the answer's."""
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: EndReason


class Completion(Wire):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    """Unix seconds."""
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class CompletionChunkChoice(Wire):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: EndReason | None = None


class CompletionChunk(Wire):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    system_fingerprint: str


class CompletionChunkWithUsage(CompletionChunk):
    """Where ``stream_options.include_usage`` asked for it: null but in the last chunk."""

    usage: Usage | None = None
