"""Functions that the model may call, the choice among them, and calls. Flat: the form of the Responses API."""

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema

from llava_api.protocol.wire import JSON_PATHS, Ignored, PhpObject, RequestObject, written_as

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]
"""OpenAI's API has no dots, colons and slashes, which tools of MCP servers have."""
ToolMode = Literal["none", "auto", "required"]
MAX_TOOLS = 128


class OfTypeFunction(RequestObject):
    type: Literal["function"]


class Function(RequestObject):
    name: Name
    description: str | None = None
    """Shown to the model."""
    parameters: PhpObject[dict[str, Any]] | None = None
    """JSON Schema of the arguments, with type object; default: no arguments."""
    strict: bool | None = None
    """Refuse a schema with keywords that cannot be enforced, instead of leaving them out."""


class FunctionTool(RequestObject):
    type: Literal["function"] = "function"
    function: Function


# The bases are in this order because pydantic reports errors of the last one's fields first: a wrong type matters most.
class FlatTool(Function, OfTypeFunction):
    pass


def has_instead(own: str, given: object, *others: str) -> bool:
    """Whether an object lacks the field ``own`` and has one of ``others``, or Gemini's list of functions."""
    names = {*others, "function_declarations", "functionDeclarations"}
    return isinstance(given, dict) and own not in given and not names.isdisjoint(given)


GivenTool = Annotated[
    FunctionTool,
    written_as(
        '{"type": "function", "function": {"name": ..., "parameters": {...}}}',
        lambda tool: has_instead("function", tool, "name", "input_schema"),
    ),
]
GivenFlatTool = Annotated[
    FlatTool,
    written_as(
        '{"type": "function", "name": ..., "parameters": {...}}',
        lambda tool: has_instead("name", tool, "function") or has_instead("type", tool, "input_schema"),
    ),
]


class FunctionName(RequestObject):
    name: str


class NamedTool(OfTypeFunction):
    """Make the model call this function."""

    function: FunctionName

    @property
    def name(self) -> str:
        return self.function.name


class FlatNamedTool(FunctionName, OfTypeFunction):
    """Make the model call this function."""


class AllowedNames(RequestObject):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(RequestObject):
    """Let the model call only these functions, although ``tools`` may describe more."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedNames


class FlatAllowedTools(RequestObject):
    """Let the model call only these functions, although ``tools`` may describe more."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatNamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


def with_type(choice: object) -> object:
    """Mistral's word for required, and a function without ``type``."""
    if isinstance(choice, dict) and "type" not in choice:
        return {**choice, "type": "function"}
    return "required" if choice == "any" else choice


def is_name(choice: object) -> bool:
    """Whether a choice may be the bare name of a function."""
    return isinstance(choice, str) and choice not in ("", *get_args(ToolMode))


ToolObject = Annotated[NamedTool | AllowedTools, Field(discriminator="type"), JSON_PATHS]
ToolChoice = Annotated[
    ToolMode | ToolObject,
    JSON_PATHS,
    written_as(
        'none, auto, required or {"type": "function", "function": {"name": ...}}',
        lambda choice: is_name(choice) or has_instead("function", choice, "name"),
    ),
    BeforeValidator(with_type),
]
FlatToolObject = Annotated[FlatNamedTool | FlatAllowedTools, Field(discriminator="type"), JSON_PATHS]
FlatToolChoice = Annotated[
    ToolMode | FlatToolObject,
    JSON_PATHS,
    written_as(
        'none, auto, required or {"type": "function", "name": ...}',
        lambda choice: is_name(choice) or has_instead("name", choice, "function"),
    ),
    BeforeValidator(with_type),
]


def json_text(given: object) -> object:
    """Arguments as the model writes them."""
    try:
        return json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given or "{}"
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


Arguments = Annotated[
    str, BeforeValidator(json_text), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})
]
"""JSON as a text, or the object itself; null and an empty text: no arguments."""


class FunctionCall(RequestObject):
    name: str
    arguments: Arguments = "{}"
    """JSON, or the object itself."""
    parsed_arguments: Ignored = None
    """Accepted and not used: the openai client's parsed form of the arguments."""


class ToolCall(RequestObject):
    id: str | None = None
    """For ``tool_call_id`` of the result."""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None
    """Accepted and not used: the number of a streamed call."""
