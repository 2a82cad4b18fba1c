"""Functions that the model may call: how they are described to it, and which of them it may call now.

LLaVA was never trained to call functions. So they are described in the system text, in the format below, and the
grammar of the answer only allows calls that parse and fit the functions' schemas.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava_api.chat.keywords import Part, listed
from llava_api.chat.schema import ReadSchema, read_schema
from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.protocol import tools as wire

INTRODUCTION = (
    'You can call these functions. To call one, answer with JSON alone, as {"name": ..., "arguments": {...}}:'
)
MOST_CALLS = 8
"""Most calls in one answer: a small model may not end by itself."""
MAX_CHARACTERS = 128_000
"""Most characters of all descriptions together. They go into the prompt, and no LLaVA's context has room for more."""
NO_ARGUMENTS: Part = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str | None
    schema: ReadSchema
    """Schema of the arguments, an object."""

    def line(self) -> str:
        """The function's line in the system text."""
        described = {} if self.description is None else {"description": self.description}
        return json.dumps({"name": self.name, **described, "parameters": self.schema.given}, ensure_ascii=False)


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
        schema = arguments_of(function, f"{param}.{schema_field}")
        tools[function.name] = tool = Tool(function.name, function.description, schema)
        size += len(tool.line())
        if size > MAX_CHARACTERS:
            raise InvalidRequest(
                f"The tools are larger than {MAX_CHARACTERS} characters together, which exceeds the model's maximum "
                "context length: send fewer, or shorter ones.",
                param="tools",
                code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            )
    mode: Literal["auto", "required"] = "auto"
    names = list(tools)
    if choice == "none":
        return None
    if choice == "required":
        mode = "required"
    elif isinstance(choice, wire.NamedTool | wire.FlatNamedTool):
        mode, names, parallel = "required", [choice.name], False
    elif isinstance(choice, wire.AllowedTools | wire.FlatAllowedTools):
        allowed = choice.allowed_tools if isinstance(choice, wire.AllowedTools) else choice
        mode, names = allowed.mode, [tool.name for tool in allowed.tools]
    unknown = next((name for name in names if name not in tools), None)
    if unknown is not None:
        raise InvalidRequest(
            f"tool_choice names {unknown[:64]!r}, which is no function of the tools.", param="tool_choice"
        )
    return Toolbox(tuple(tools[name] for name in dict.fromkeys(names)), mode, MOST_CALLS if parallel else 1)


def arguments_of(function: wire.Function, param: str) -> ReadSchema:
    """Raises InvalidRequest if the schema exceeds a bound, or is not of type object."""
    if function.parameters is None:
        return ReadSchema(param, NO_ARGUMENTS, NO_ARGUMENTS)
    schema = read_schema({"type": "object", **function.parameters}, param, function.strict)
    if "object" not in listed(schema.kept.get("type", "object")):
        raise InvalidRequest(
            "A function's parameters are a schema of type object.", param=param, code=ErrorCode.INVALID_SCHEMA
        )
    schema.kept["type"] = "object"
    return schema
