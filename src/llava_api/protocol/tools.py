"""Functions that the model may call, and its calls."""

from typing import Annotated, Any, Literal

from pydantic import Field

from llava_api.protocol.wire import JSON_PATHS, Given, Unused

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
MAX_TOOLS = 128


class Function(Given):
    name: Name
    description: str | None = None
    """Shown to the model."""
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments, of type object; default: none."""
    strict: bool | None = None
    """Arguments fit the schema either way."""


class FunctionTool(Given):
    type: Literal["function"]
    function: Function


class FunctionName(Given):
    name: str


class NamedTool(Given):
    """Make the model call this function."""

    type: Literal["function"]
    function: FunctionName


class AllowedNames(Given):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(Given):
    """Let the model call these functions only, of all that ``tools`` describes."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedNames


ToolMode = Literal["none", "auto", "required"]
ChosenTools = Annotated[NamedTool | AllowedTools, Field(discriminator="type"), JSON_PATHS]
ToolChoice = Annotated[ToolMode | ChosenTools, JSON_PATHS]


class FunctionCall(Given):
    name: str
    arguments: str
    """JSON."""
    parsed_arguments: Unused = None
    """What the openai client made of them; accepted and not used."""


class ToolCall(Given):
    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None
    """Of a streamed call; accepted and not used."""
