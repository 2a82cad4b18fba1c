"""An error of a request names the field by its path in the caller's JSON, whatever unions pydantic went through."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llava_api.errors import InvalidRequest
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.responses import ResponseRequest
from llava_api.server.body import json_path, parse

FUNCTION = {"name": "look"}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
PARTS = [
    {"type": "text", "text": "x"},
    {"type": "image_url", "image_url": {"url": "data:"}},
    {"type": "input_text", "text": "x"},
    {"type": "input_image", "image_url": "data:"},
]
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}], "tool_calls": [CALL]},
        {"role": "tool", "content": PARTS, "tool_call_id": "c"},
    ],
    "response_format": {"type": "json_schema", "json_schema": {"name": "x"}},
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": FUNCTION}]},
    },
}
RESPONSE: dict[str, Any] = {
    "model": "tiny",
    "input": [
        {"role": "system", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "message", "role": "user", "content": PARTS},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": PARTS},
    ],
    "text": {"format": {"type": "text"}},
    "tools": [{"type": "function", "name": "look"}],
    "tool_choice": {"type": "function", "name": "look"},
}
KINDS = ("function", "text", "system", "user", "message", "str", "json_schema", "allowed_tools", "tokens", "[key]")
"""Names that pydantic uses for members of unions, and some that look like them."""


def objects(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
    for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            yield from objects(inner, (*path, step))


@pytest.mark.parametrize(("model", "example"), [(ChatCompletionRequest, CHAT), (ResponseRequest, RESPONSE)])
def test_the_path_to_an_unknown_field(model: type[Any], example: dict[str, Any]) -> None:
    body = json.loads(json.dumps(example))
    parse(json.dumps(body).encode(), model)
    tried = 0
    for path, value in objects(body):
        for name in KINDS:
            if name in value or (not path and name in model.model_fields):
                continue
            value[name] = {"x": 1}
            with pytest.raises(InvalidRequest) as refused:
                parse(json.dumps(body).encode(), model, strict=True)
            assert (refused.value.param, refused.value.code) == (json_path((*path, name)), "unknown_parameter")
            del value[name]
            tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": None}}]}, "tools[0].function.name", "Missing"),
        ({"tools": [{"type": "function", "function": 1}]}, "tools[0].function", "an object"),
        ({"tool_choice": {"name": "x"}}, "tool_choice", "write it as none, auto, required or"),
        ({"tool_choice": {"type": "x"}}, "tool_choice.type", "'function' or 'allowed_tools'"),
        ({"tool_choice": "x"}, "tool_choice", "write it as none, auto, required or"),
        ({"logit_bias": {"function": {}}}, "logit_bias.function", "a number"),
        ({"logit_bias": {"x" * 65: ""}}, f"logit_bias.{'x' * 64}...", "a number"),
        ({"logit_bias": dict.fromkeys(map(str, range(1000)), "x")}, None, "too many errors"),
    ],
)
def test_the_path_to_a_wrong_value(change: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        parse(json.dumps(CHAT | change).encode(), ChatCompletionRequest)
    assert refused.value.param == param
