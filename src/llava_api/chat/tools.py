"""Functions that the model may call: how they are described to it, and which of them it may call now.

LLaVA was never trained to call functions. So they are described in the system text, in the format below, and the
grammar of the answer only allows calls that parse and fit the functions' schemas.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava_api.chat.schema import MAX_BYTES, Schema, check_schema
from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.protocol import tools as wire

INTRODUCTION = (
    'You can call these functions. To call one, answer with JSON alone, as {"name": ..., "arguments": {...}}:'
)
MOST_CALLS = 8
"""Most calls in one answer: a small model may not end by itself."""
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str | None
    schema: Schema
    """Schema of the arguments, an object."""
    param: str = "tools"
    """The field that the schema comes from."""

    def line(self) -> str:
        """The function's line in the system text."""
        described = {} if self.description is None else {"description": self.description}
        return json.dumps({"name": self.name, **described, "parameters": self.schema}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Toolbox:
    tools: tuple[Tool, ...]
    """The functions that may be called, one at least."""
    mode: Literal["auto", "required"]
    """auto: the model chooses whether to call or to answer with text."""
    most: int
    """Most calls in one answer."""

    def description(self) -> str:
        """Text for the system message."""
        return "\n".join([INTRODUCTION, *(tool.line() for tool in self.tools)])


def read_tools(
    given: Sequence[tuple[wire.Function, str]],
    choice: wire.ToolChoice | wire.FlatToolChoice | None,
    parallel: bool,
    schema_field: str = "parameters",
) -> Toolbox | None:
    """Functions, each with its place in the request -> those that may be called; None for none.

    Raises InvalidRequest.
    """
    if not given:
        if choice in (None, "none", "auto"):
            return None
        raise InvalidRequest("tool_choice asks for a call, but there are no tools.", param="tool_choice")
    tools: dict[str, Tool] = {}
    size = 0
    for function, param in given:
        if function.name in tools:
            raise InvalidRequest("Two tools have the same name.", param=f"{param}.name")
        schema_param = f"{param}.{schema_field}"
        tools[function.name] = tool = Tool(
            function.name, function.description, arguments_of(function, schema_param), schema_param
        )
        size += len(tool.line())
        # They all go into the prompt.
        if size > MAX_BYTES:
            raise InvalidRequest(f"The tools are larger than {MAX_BYTES} characters together.", param="tools")
    mode: Literal["auto", "required"] = "auto"
    names = list(tools)
    if choice == "none":
        return None
    if choice == "required":
        mode = "required"
    elif isinstance(choice, wire.NamedTool | wire.FlatNamedTool):
        mode, names, parallel = "required", [name_of(choice)], False
    elif isinstance(choice, wire.AllowedTools | wire.FlatAllowedTools):
        allowed = choice.allowed_tools if isinstance(choice, wire.AllowedTools) else choice
        mode, names = allowed.mode, [name_of(tool) for tool in allowed.tools]
    unknown = next((name for name in names if name not in tools), None)
    if unknown is not None:
        raise InvalidRequest(
            f"tool_choice names {unknown[:64]!r}, which is no function of the tools.", param="tool_choice"
        )
    return Toolbox(tuple(tools[name] for name in dict.fromkeys(names)), mode, MOST_CALLS if parallel else 1)


def name_of(tool: wire.NamedTool | wire.FlatNamedTool) -> str:
    return tool.function.name if isinstance(tool, wire.NamedTool) else tool.name


def arguments_of(function: wire.Function, param: str) -> Schema:
    """Raises InvalidRequest if the schema exceeds a bound, or is not of type object."""
    if function.parameters is None:
        return NO_ARGUMENTS
    schema = {"type": "object", **function.parameters}
    if schema["type"] != "object":
        raise InvalidRequest(
            "A function's parameters are a schema of type object.", param=param, code=ErrorCode.INVALID_SCHEMA
        )
    check_schema(schema, param)
    return schema
