"""``POST /v1/messages`` and ``count_tokens``: replies, events of the stream and errors, as in Anthropic's API."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from llava_api.errors import ApiError, ErrorCode
from llava_api.protocol.wire import ErrorShape, NamedEvent, WireObject

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""HTTP status -> Anthropic's name for the error."""


class ReplyTextBlock(WireObject):
    type: Literal["text"] = "text"
    text: str
    citations: None = None


class ReplyToolUseBlock(WireObject):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]
    """Fits the tool's schema, unless the answer was cut (stop_reason max_tokens)."""


ReplyBlock = Annotated[ReplyTextBlock | ReplyToolUseBlock, Field(discriminator="type")]


class AnthropicModel(WireObject):
    """What ``GET /v1/models`` lists if the request has the header ``anthropic-version``."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    """When this server started."""


class AnthropicModelList(WireObject):
    data: list[AnthropicModel]
    has_more: Literal[False] = False
    first_id: str
    last_id: str


class MessageUsage(WireObject):
    """All tokens of the prompt, those of images too, are input_tokens and cache_read_input_tokens together."""

    input_tokens: int
    """Prompt tokens that were computed for this request."""
    cache_creation_input_tokens: int = 0
    """Always 0: filling the cache costs nothing."""
    cache_read_input_tokens: int
    """Prompt tokens that were already computed for an earlier request."""
    output_tokens: int
    service_tier: Literal["standard"] = "standard"


class AnthropicMessage(WireObject):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ReplyBlock]
    stop_reason: StopReason | None
    """Null in a stream's message_start."""
    stop_sequence: str | None
    """The one of stop_sequences that ended the answer."""
    usage: MessageUsage


class TokenCount(WireObject):
    input_tokens: int
    """Of the prompt as the model would be shown it, with images and the description of the tools."""


class AnthropicEvent(NamedEvent):
    last_events = "message_stop or, after a failure, error"


class MessageStart(AnthropicEvent):
    type: Literal["message_start"] = "message_start"
    message: AnthropicMessage


class BlockStart(AnthropicEvent):
    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: ReplyBlock


class TextBlockDelta(WireObject):
    type: Literal["text_delta"] = "text_delta"
    text: str


class InputJsonDelta(WireObject):
    type: Literal["input_json_delta"] = "input_json_delta"
    partial_json: str
    """The next characters of the input's JSON."""


class BlockDelta(AnthropicEvent):
    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: Annotated[TextBlockDelta | InputJsonDelta, Field(discriminator="type")]


class BlockStop(AnthropicEvent):
    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class MessageEnd(WireObject):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(AnthropicEvent):
    type: Literal["message_delta"] = "message_delta"
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(AnthropicEvent):
    type: Literal["message_stop"] = "message_stop"


class AnthropicError(WireObject):
    type: str
    """Anthropic's name for the error: invalid_request_error, overloaded_error and others."""
    message: str
    """What is wrong and what to do."""
    param: str | None
    """The field to correct. An extension."""
    code: str | None
    """The error's code, as in an ErrorObject. An extension."""


class AnthropicErrorReply(AnthropicEvent, ErrorShape):
    type: Literal["error"] = "error"
    error: AnthropicError
    request_id: str

    @classmethod
    def of(cls, error: ApiError, request_id: str) -> Self:
        if error.code == ErrorCode.REQUEST_TIMEOUT:
            kind = "timeout_error"
        else:
            kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        message = error.message
        if error.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED:
            # Claude Code and others look for these words of Anthropic's.
            message = f"prompt is too long: {message}"
        body = AnthropicError(type=kind, message=message, param=error.param, code=error.code)
        return cls(error=body, request_id=request_id)


EVENTS = (MessageStart, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, AnthropicErrorReply)
