"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: the request, as in Anthropic's Messages API."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, FailFast, Field

from llava_api.protocol.messages import Content, HasContent
from llava_api.protocol.refused import FORM_FIELDS, sentences
from llava_api.protocol.sampling import GeneratingRequest, Stop
from llava_api.protocol.tools import MAX_TOOLS, Arguments, Name, has_instead
from llava_api.protocol.wire import JSON_PATHS, Ignored, RequestObject, written_as

MAX_STOPS = 64


class TextBlock(RequestObject):
    type: Literal["text"]
    text: str


class Base64Source(RequestObject):
    type: Literal["base64"]
    data: str
    """The image in base64."""
    media_type: str | None = None
    """Accepted and not used: the image itself shows its format."""


class UrlSource(RequestObject):
    type: Literal["url"]
    url: str
    """An http or https URL, a ``data:`` URL or, if the server allows it, ``file://``."""


class FileSource(RequestObject):
    type: Literal["file"]
    file_id: str
    """The id of an image that was uploaded to /v1/files, in OpenAI's form."""


class ImageBlock(RequestObject):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type"), JSON_PATHS]


IMAGE_FORM = written_as(
    '{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "..."}}',
    lambda part: (
        isinstance(part, dict)
        and part.get("type") in ("image", "image_url", "input_image")
        and part.get("source") is None
    ),
)
ShownBlock = Annotated[TextBlock | ImageBlock, Field(discriminator="type"), JSON_PATHS, IMAGE_FORM]


class ToolUseBlock(RequestObject):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: Arguments = "{}"
    """An object, or its JSON."""


class ToolResultBlock(RequestObject):
    type: Literal["tool_result"]
    tool_use_id: str
    """The call that it answers: an id of an earlier tool_use block."""
    content: Content[ShownBlock] | None = None
    """What the tool returned."""
    is_error: bool | None = None
    """The model is told that the call failed."""


class ThinkingBlock(RequestObject):
    """Accepted and not shown to the model."""

    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock,
    Field(discriminator="type"),
    JSON_PATHS,
    IMAGE_FORM,
]


class InputMessage(HasContent):
    role: Literal["user", "assistant", "system"]
    content: Content[Block]


class ToolDefinition(RequestObject):
    type: Literal["custom"] | None = None
    """Tools that Anthropic runs or defines are not offered."""
    name: Name
    description: str | None = None
    """Shown to the model."""
    input_schema: dict[str, Any]
    """JSON Schema of the input, with type object."""
    strict: bool | None = None
    """Refuse a schema with keywords that cannot be enforced, instead of leaving them out."""


TOOL_FORM = written_as(
    '{"name": ..., "input_schema": {...}}', lambda tool: has_instead("input_schema", tool, "function", "parameters")
)
CHOICE_FORM = written_as(
    '{"type": "tool", "name": ...} for one tool, or {"type": "auto"}, {"type": "any"} or {"type": "none"}',
    lambda choice: isinstance(choice, str) or has_instead("-", choice, "function"),
)


class ToolChoiceMode(RequestObject):
    """auto leaves it to the model whether to call a tool; any makes it call one."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None
    """Allow one call in an answer; default false."""


class ToolChoiceName(RequestObject):
    """Make the model call this tool."""

    type: Literal["tool"]
    name: str


class OutputFormat(RequestObject):
    model_config = ConfigDict(validate_by_alias=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")
    """The answer always fits this JSON Schema."""


class OutputConfig(RequestObject):
    format: OutputFormat | None = None


class MessagesRequest(GeneratingRequest):
    refused: ClassVar = {
        **sentences(("{} belongs to vLLM's server: send output_config.format or tools instead.", FORM_FIELDS)),
        "container": "This server runs no containers and has no skills: leave container out.",
        "mcp_servers": "This server calls no MCP servers: call them yourself, and send their tools in tools.",
    }

    messages: Annotated[list[InputMessage], FailFast()] = Field(min_length=1)
    """If an assistant's message is the last, the model continues it."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer; default: all that are left in the context."""
    system: Content[ShownBlock] | None = None
    stop_sequences: list[Stop] | None = Field(None, max_length=MAX_STOPS)
    """Texts that end the answer; they are not part of it."""
    tools: list[Annotated[ToolDefinition, TOOL_FORM]] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; the system text describes them to it."""
    tool_choice: (
        Annotated[ToolChoiceMode | ToolChoiceName, Field(discriminator="type"), JSON_PATHS, CHOICE_FORM] | None
    ) = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """Older place of ``output_config.format``."""
    metadata: Ignored = None
    """Accepted and not used."""
    service_tier: Ignored = None
    """Accepted and not used: every request is served alike."""
    thinking: Ignored = None
    """Accepted and not used: LLaVA answers without thinking, and no thinking blocks come."""
