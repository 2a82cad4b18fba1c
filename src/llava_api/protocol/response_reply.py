"""``POST /v1/responses``: the response, and the events of its stream. Fields and nulls are those of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_api.protocol.chat import Metadata
from llava_api.protocol.chat_reply import TokenLogprob
from llava_api.protocol.responses import InputItem, ItemStatus, TextOptions
from llava_api.protocol.tools import FlatAllowedTools, FlatNamedTool, ToolMode
from llava_api.protocol.wire import NamedEvent, WireObject

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(WireObject):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    """Always empty."""
    logprobs: list[TokenLogprob] = Field(default_factory=list)
    """The tokens of the text, if the request asked for them."""


class OutputMessage(WireObject):
    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(WireObject):
    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    """JSON that fits the function's schema, unless the answer was cut (status incomplete)."""


OutputItem = Annotated[OutputMessage | OutputCall, Field(discriminator="type")]


class InputTokensDetails(WireObject):
    cached_tokens: int
    """Prompt tokens that were already computed for an earlier request."""
    cache_write_tokens: int = 0
    """Always 0: filling the cache costs nothing."""


class OutputTokensDetails(WireObject):
    reasoning_tokens: int = 0
    """Always 0: LLaVA does not reason before it answers."""


class ResponseUsage(WireObject):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(WireObject):
    code: Literal["server_error"] = "server_error"
    message: str


class IncompleteDetails(WireObject):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ReturnedTool(WireObject):
    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class NoReasoning(WireObject):
    """LLaVA does not reason before it answers."""

    effort: None = None
    summary: None = None


class Response(WireObject):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    """Unix time in seconds."""
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    frequency_penalty: float
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: Metadata
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: NoReasoning = NoReasoning()
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    """Whether the server stores it for previous_response_id."""
    temperature: float
    text: TextOptions
    tool_choice: ToolMode | FlatNamedTool | FlatAllowedTools
    tools: list[ReturnedTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


class DeletedResponse(WireObject):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputItemList(WireObject):
    object: Literal["list"] = "list"
    data: list[InputItem]
    """Items of the conversation before the answer, those of earlier responses too, each with an id."""
    first_id: str | None
    last_id: str | None
    """For ``after``, which lists the next ones."""
    has_more: bool


class InputTokens(WireObject):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
    """Tokens of the whole prompt, images and descriptions of functions included."""


class Event(NamedEvent):
    last_events = "response.completed, response.incomplete or response.failed"
    sequence_number: int
    """Number of the event in the stream, from 0."""


class ResponseEvent(Event):
    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: Response


class ItemEvent(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class ContentEvent(Event):
    item_id: str
    output_index: int


class TextEvent(ContentEvent):
    content_index: Literal[0] = 0


class PartEvent(TextEvent):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText


class TextDelta(TextEvent):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(TextEvent):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str
    logprobs: list[TokenLogprob]


class ArgumentsDelta(ContentEvent):
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class ArgumentsDone(ContentEvent):
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str


EVENTS = (ResponseEvent, ItemEvent, PartEvent, TextDelta, TextDone, ArgumentsDelta, ArgumentsDone)
