"""Functions that a system prompt offers, and answers that call one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from llava_api.chat.tools import INTRODUCTION
from training.conversations import Question
from training.drawings import COLOURS, KINDS

NAMES = (
    "report_shape",
    "report",
    "describe",
    "describe_image",
    "describe_picture",
    "set_color",
    "get_color",
    "get_shape",
    "save_answer",
    "save",
    "count_shapes",
    "record",
    "record_result",
    "store_result",
    "log_shape",
    "submit",
    "submit_answer",
    "find_shapes",
    "answer",
    "extract",
    "read_number",
    "classify",
    "show_result",
    "notify",
    "get_weather",
    "paint",
    "Shape",
    "Picture",
    "Answer",
    "ShapeReport",
)
DESCRIPTIONS = (
    "Report the shape in the picture.",
    "Report a shape and its color.",
    "Save the answer.",
    "Describe the image.",
    "Store what is in the picture.",
    "Count the shapes.",
    "Set the color.",
    "Record what you see.",
    "The largest shape in the picture.",
    "Correctly extracted `Shape` with all the required parameters with correct types",
)
JSON_TYPES = {str: "string", bool: "boolean", int: "integer"}


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    line: str
    """What the system prompt says of it."""


@dataclass(frozen=True, slots=True)
class Style:
    """What some libraries write into a schema, and others do not."""

    titles: bool
    required: bool
    closed: bool


def schema(rng: Random, value: Any, style: Style) -> dict[str, Any]:
    """A JSON schema that fits ``value``."""
    if isinstance(value, dict):
        properties = {
            key: {**({"title": key.title()} if style.titles else {}), **schema(rng, one, style)}
            for key, one in value.items()
        }
        whole: dict[str, Any] = {"type": "object", "properties": properties}
        if style.required:
            whole["required"] = list(value)
        return {**whole, "additionalProperties": False} if style.closed else whole
    if isinstance(value, list):
        return {"type": "array", "items": schema(rng, value[0], style) if value else {"type": "string"}}
    plain: dict[str, Any] = {"type": JSON_TYPES[type(value)]}
    words = next((group for group in (COLOURS, KINDS) if value in group), ())
    if words and rng.random() < 0.3:
        plain["enum"] = list(words)
    elif plain["type"] == "integer" and rng.random() < 0.3:
        plain |= {"minimum": 0, "maximum": 9 if value < 10 else 99}
    return plain


def draw_function(rng: Random, name: str, arguments: dict[str, Any]) -> Function:
    whole: dict[str, Any] = {"name": name}
    if rng.random() < 0.7:
        whole["description"] = rng.choice(DESCRIPTIONS)
    style = Style(titles=rng.random() < 0.2, required=rng.random() < 0.7, closed=rng.random() < 0.3)
    return Function(name, json.dumps({**whole, "parameters": schema(rng, arguments, style)}))


def draw_functions(rng: Random, asked: Sequence[Question]) -> list[Function]:
    """A function for each question, in their order, its parameters those of the answer; now and then one more."""
    arguments = [json.loads(question.answer) for question in asked]
    if not arguments or rng.random() < 0.15:
        arguments.append({"city": "Paris"} if rng.random() < 0.5 else {"color": "red", "shape": "circle"})
    names = rng.sample(NAMES, len(arguments))
    return [draw_function(rng, name, one) for name, one in zip(names, arguments, strict=True)]


def functions_text(rng: Random, functions: Sequence[Function]) -> str:
    """The text after the system prompt, in the server's words, with the functions in any order."""
    lines = [function.line for function in rng.sample(functions, len(functions))]
    return "\n\n" + "\n".join([INTRODUCTION, *lines])


def call(question: Question, name: str) -> Question:
    """``question`` answered by a call. The schema dictates the function and what it dictated of the arguments."""
    before = f'{{"name": {json.dumps(name)}, "arguments": '
    own = (*[False] * len(before), *(question.own or ()), False)
    return Question(f"call {question.kind}", question.text, before + question.answer + "}", own)
