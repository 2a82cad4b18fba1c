"""``POST /v1/chat/completions``: the reply, whole or in chunks. Fields and nulls are those of OpenAI's API."""

from typing import Literal

from pydantic import Field

from llava_api.protocol.wire import WireObject, is_none

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(WireObject):
    cached_tokens: int
    """Prompt tokens that were already computed for an earlier request."""
    image_tokens: int
    """Prompt tokens of the images."""


class Usage(WireObject):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_of(prompt_tokens: int, image_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    """``prompt_tokens``: the image tokens included."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens, image_tokens=image_tokens),
    )


class TopLogprob(WireObject):
    token: str
    logprob: float
    bytes: list[int]
    """UTF-8 of the token, which may be a part of a character."""


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(WireObject):
    content: list[TokenLogprob]
    """The tokens of the answer's text in order."""
    refusal: None = None


class ScoredChoice(WireObject):
    """One of ``structured_outputs.choice``."""

    choice: str
    logprob: float
    """Sum of the log-probabilities of its tokens after the prompt, as if no form had been asked for."""
    probability: float
    """Its share among the choices, which is 1 for all together. A longer choice that begins with it has its own."""


class PromptLogprob(WireObject):
    logprob: float
    rank: int
    """Place among all tokens; 1 is the most likely."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ReplyFunction(WireObject):
    name: str
    arguments: str
    """JSON that fits the function's schema, unless the answer was cut (finish_reason length)."""


class ReplyToolCall(WireObject):
    id: str
    type: Literal["function"] = "function"
    function: ReplyFunction


class ReplyMessage(WireObject):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ReplyToolCall] | None = Field(default=None, exclude_if=is_none)


class Choice(WireObject):
    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason
    choice_logprobs: list[ScoredChoice] | None = Field(default=None, exclude_if=is_none)
    """With ``structured_outputs.choice`` and ``logprobs``: each choice, in the order of the request."""
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """With ``return_token_ids``."""


class ChatCompletion(WireObject):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: Literal["default"] = "default"
    system_fingerprint: str
    """Changes when the server's version, checkpoint or settings change."""
    prompt_logprobs: PromptLogprobs | None = Field(default=None, exclude_if=is_none)
    """For each token of the prompt, if asked for: ids of that token and of the most likely ones in its place. Null for
    the first token and for those of images."""
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """With ``return_token_ids``."""


class FunctionDelta(WireObject):
    name: str | None = Field(default=None, exclude_if=is_none)
    """In the first chunk of a call."""
    arguments: str
    """The next characters of the JSON."""


class ToolCallDelta(WireObject):
    index: int
    """Number of the call in the answer, from 0."""
    id: str | None = Field(default=None, exclude_if=is_none)
    """In the first chunk of a call."""
    type: Literal["function"] | None = Field(default=None, exclude_if=is_none)
    """In the first chunk of a call."""
    function: FunctionDelta


class DeltaMessage(WireObject):
    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_none)
    content: str | None = Field(default=None, exclude_if=is_none)
    tool_calls: list[ToolCallDelta] | None = Field(default=None, exclude_if=is_none)


class ChunkChoice(WireObject):
    index: int
    delta: DeltaMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    choice_logprobs: list[ScoredChoice] | None = Field(default=None, exclude_if=is_none)
    """In a choice's last chunk."""
    token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """In a choice's last chunk, with ``return_token_ids``."""


class ChatCompletionChunk(WireObject):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[ChunkChoice]
    service_tier: Literal["default"] = "default"
    system_fingerprint: str
    prompt_token_ids: list[int] | None = Field(default=None, exclude_if=is_none)
    """In the first chunk, with ``return_token_ids``."""


class ChunkWithUsage(ChatCompletionChunk):
    """With ``stream_options.include_usage``. Usage is null except in the last chunk.

    With ``continuous_usage_stats`` every chunk has the counts so far.
    """

    usage: Usage | None = None
