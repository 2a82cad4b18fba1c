"""``POST /v1/responses``: the request."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from llava_api.protocol.chat import Metadata, ServiceTier
from llava_api.protocol.formats import JsonObjectFormat, TextFormat
from llava_api.protocol.messages import Content, InputTextPart, RefusalPart, TextPart, UserPart
from llava_api.protocol.refused import NOT_LLAVA, VLLM
from llava_api.protocol.sampling import Extensions
from llava_api.protocol.tools import MAX_TOOLS, Name, ToolMode
from llava_api.protocol.wire import JSON_PATHS, Given, Unused, absent

SystemPart = Annotated[InputTextPart | TextPart, Field(discriminator="type"), JSON_PATHS]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(Given):
    """What the model said before; of this only ``text`` is used."""

    type: Literal["output_text"]
    text: str
    annotations: Unused = None
    logprobs: Unused = None
    parsed: Unused = None


AssistantPart = Annotated[OutputTextPart | RefusalPart | InputTextPart, Field(discriminator="type"), JSON_PATHS]


class Item(Given):
    """What all items may carry; none of it is shown to the model."""

    id: str | None = None
    status: ItemStatus | None = None


class UserItem(Item):
    type: Literal["message"] | None = None
    role: Literal["user"]
    content: Content[UserPart]


class SystemItem(Item):
    type: Literal["message"] | None = None
    role: Literal["system", "developer"]
    content: Content[SystemPart]


class AssistantItem(Item):
    type: Literal["message"] | None = None
    role: Literal["assistant"]
    content: Content[AssistantPart]
    phase: Literal["commentary", "final_answer"] | None = None
    """Accepted and not used."""


class CallItem(Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    parsed_arguments: Unused = None
    """What the openai client made of them; accepted and not used."""


class CallOutputItem(Item):
    """What the function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content[UserPart]


def kind_of(item: Any) -> str | None:
    """Which item it is: by its type, and a message by its role too."""
    given = item if isinstance(item, dict) else getattr(item, "__dict__", {})
    kind = given.get("type") or "message"
    kind = given.get("role") if kind == "message" else kind
    return "system" if kind == "developer" else kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[UserItem, Tag("user")]
    | Annotated[SystemItem, Tag("system")]
    | Annotated[AssistantItem, Tag("assistant")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(
        kind_of,
        custom_error_type="item_kind",
        custom_error_message="an item is a message with role user, assistant, system or developer, a function_call, "
        "or a function_call_output",
    ),
    JSON_PATHS,
]


class SchemaFormat(Given):
    # "schema" is the wire's name; a pydantic model has a method of that name already.
    model_config = ConfigDict(validate_by_alias=True)

    type: Literal["json_schema"]
    name: Name
    """Not shown to the model."""
    description: str | None = Field(default=None, exclude_if=absent)
    """Not shown to the model."""
    schema_: dict[str, Any] = Field(alias="schema")
    """JSON Schema of the answer."""
    strict: bool | None = None
    """The answer fits the schema either way."""


class TextOptions(Given):
    refused: ClassVar = {"verbosity": NOT_LLAVA["verbosity"]}
    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type"), JSON_PATHS] | None = (
        None
    )


class FlatTool(Given):
    type: Literal["function"]
    name: Name
    description: str | None = None
    """Shown to the model."""
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments, of type object; default: none."""
    strict: bool | None = None
    """Arguments fit the schema either way."""


class FlatNamedTool(Given):
    """Make the model call this function."""

    type: Literal["function"]
    name: str


class FlatAllowedTools(Given):
    """Let the model call these functions only, of all that ``tools`` describes."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatNamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


FlatChosenTools = Annotated[FlatNamedTool | FlatAllowedTools, Field(discriminator="type"), JSON_PATHS]
FlatToolChoice = Annotated[ToolMode | FlatChosenTools, JSON_PATHS]


class ResponseStreamOptions(Given):
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers is not offered."""


CALLED = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
"""Chat's names -> this endpoint's."""


class ResponseRequest(Extensions):
    refused: ClassVar = {
        **{name: NOT_LLAVA[name] for name in ("moderation", "prompt_cache_options", "prompt_cache_retention")},
        **VLLM,
        "access_programs": "access_programs belongs to OpenAI's own service: leave it out.",
        "background": "Responses are made at once or streamed, not in the background: leave background out.",
        "context_management": "Conversations are not shortened here: leave context_management out.",
        "conversation": "No conversations are stored here: send the earlier items in input.",
        "image": "Pictures are not compressed in the context: leave image out.",
        "max_tool_calls": "max_tool_calls counts calls of built-in tools, which this server has none of: leave it out.",
        "prompt": "No prompt templates are stored here: send instructions and input.",
        "reasoning": "LLaVA does not reason before it answers: leave reasoning out.",
        **{name: f"{name} is called {theirs} here." for name, theirs in CALLED.items()},
        "messages": "messages belong to /v1/chat/completions; here it is input.",
    }

    model: str
    """A name of ``GET /v1/models``."""
    input: Annotated[str | Annotated[list[InputItem], Field(fail_fast=True, min_length=1)], JSON_PATHS]
    """A user's text, or items: messages with texts and pictures, function calls and what they returned."""
    instructions: str | None = None
    """The system text; not carried over by previous_response_id."""
    previous_response_id: str | None = None
    """Go on from this response; needs a server with --response-store-bytes."""
    store: bool | None = None
    """Keep the response; default: kept where the server keeps any. true needs --response-store-bytes."""
    max_output_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer; default: what room the context leaves."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token each time; default: as the checkpoint's generation_config.json says."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Send each token's log-probability, and so many of the likeliest tokens at each place."""
    include: list[Literal["message.output_text.logprobs"]] | None = Field(None, max_length=8)
    """message.output_text.logprobs: send each token's log-probability."""
    text: TextOptions | None = None
    """The form of the answer."""
    tools: list[FlatTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; they are described to it in the system text."""
    tool_choice: FlatToolChoice | None = None
    """none, auto (the default), required, one function, or a choice of them (allowed_tools)."""
    parallel_tool_calls: bool | None = None
    """Let it make several calls in one answer; default true."""
    stream: bool | None = None
    """Send the response as Server-Sent Events while it is made."""
    stream_options: ResponseStreamOptions | None = None
    """For streams only."""
    truncation: Literal["disabled"] | None = None
    """What does not fit into the context is refused."""
    service_tier: ServiceTier | None = None
    """Accepted; every request is served as ``default``, which the reply says."""
    user: str | None = Field(None, max_length=512)
    """Accepted and sent back."""
    safety_identifier: str | None = Field(None, max_length=64)
    """Accepted and sent back."""
    prompt_cache_key: str | None = Field(None, max_length=512)
    """Accepted and sent back: equal beginnings are found without it."""
    metadata: Metadata | None = None
    """Accepted and sent back."""
