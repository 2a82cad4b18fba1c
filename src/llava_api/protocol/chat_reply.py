"""``POST /v1/chat/completions``: the reply, whole or in chunks. Fields and nulls are those of OpenAI's API."""

from typing import Literal

from pydantic import Field

from llava_api.protocol.usage import Usage
from llava_api.protocol.wire import Wire, absent

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(Wire):
    token: str
    logprob: float
    bytes: list[int]
    """UTF-8 of the token; one token may be a part of a letter."""


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Wire):
    content: list[TokenLogprob]
    """The answer's tokens in order; joined, they are its text."""
    refusal: None = None


class CalledFunction(Wire):
    name: str
    arguments: str
    """JSON that fits the function's schema, unless the answer ended early (finish_reason length)."""


class MadeCall(Wire):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ReplyMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[MadeCall] | None = Field(default=None, exclude_if=absent)


class Choice(Wire):
    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix seconds."""
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: Literal["default"] = "default"
    system_fingerprint: str
    """Changes when the server's version, checkpoint or settings do."""


class FunctionDelta(Wire):
    name: str | None = Field(default=None, exclude_if=absent)
    """In a call's first chunk."""
    arguments: str
    """The next letters of the JSON."""


class CallDelta(Wire):
    index: int
    """Which of the answer's calls."""
    id: str | None = Field(default=None, exclude_if=absent)
    """In a call's first chunk."""
    type: Literal["function"] | None = Field(default=None, exclude_if=absent)
    """In a call's first chunk."""
    function: FunctionDelta


class DeltaMessage(Wire):
    role: Literal["assistant"] | None = Field(default=None, exclude_if=absent)
    content: str | None = Field(default=None, exclude_if=absent)
    tool_calls: list[CallDelta] | None = Field(default=None, exclude_if=absent)


class ChunkChoice(Wire):
    index: int
    delta: DeltaMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Wire):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    """Unix seconds."""
    model: str
    choices: list[ChunkChoice]
    service_tier: Literal["default"] = "default"
    system_fingerprint: str


class ChunkWithUsage(ChatCompletionChunk):
    """Where ``stream_options.include_usage`` asked for it: null but in the last chunk."""

    usage: Usage | None = None
