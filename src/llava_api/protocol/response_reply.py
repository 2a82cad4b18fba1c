"""``POST /v1/responses``: the response, and the events of its stream. Fields and nulls are those of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_api.protocol.chat import Metadata
from llava_api.protocol.chat_reply import TokenLogprob
from llava_api.protocol.responses import FlatAllowedTools, FlatNamedTool, ItemStatus, TextOptions
from llava_api.protocol.tools import ToolMode
from llava_api.protocol.wire import Wire

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Wire):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    """Always empty."""
    logprobs: list[TokenLogprob] = Field(default_factory=list)
    """The text's tokens, where they were asked for."""


class OutputMessage(Wire):
    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(Wire):
    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    """JSON that fits the function's schema, unless the answer ended early (status incomplete)."""


OutputItem = Annotated[OutputMessage | OutputCall, Field(discriminator="type")]


class InputTokensDetails(Wire):
    cached_tokens: int
    """Prompt tokens that had been computed for an earlier request."""
    cache_write_tokens: int = 0
    """Nothing is charged for filling the cache."""


class OutputTokensDetails(Wire):
    reasoning_tokens: int = 0
    """LLaVA does not reason before it answers."""


class ResponseUsage(Wire):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Wire):
    code: Literal["server_error"] = "server_error"
    message: str


class IncompleteDetails(Wire):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ReturnedTool(Wire):
    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class Response(Wire):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    """Unix seconds."""
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Metadata
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    """Whether it is kept for previous_response_id."""
    temperature: float
    text: TextOptions
    tool_choice: ToolMode | FlatNamedTool | FlatAllowedTools
    tools: list[ReturnedTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


class DeletedResponse(Wire):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class Event(Wire):
    """One event of a stream; ``type`` is also the event's name."""

    type: str
    sequence_number: int
    """From 0, one more each time."""


class ResponseEvent(Event):
    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: Response


class ItemEvent(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class PartEvent(Event):
    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: Literal[0] = 0
    part: OutputText


class TextDelta(Event):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    item_id: str
    output_index: int
    content_index: Literal[0] = 0
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(Event):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    item_id: str
    output_index: int
    content_index: Literal[0] = 0
    text: str
    logprobs: list[TokenLogprob]


class ArgumentsDelta(Event):
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Event):
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    item_id: str
    output_index: int
    name: str
    arguments: str
