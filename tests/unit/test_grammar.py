"""The grammars of answers, kept to byte by byte by llguidance itself, and their texts read back as calls."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from llava_api.chat.calls import CallPart, CallReader
from llava_api.chat.grammar import ANY_OBJECT, differs_from_calls, json_grammar, tools_grammar
from llava_api.chat.schema import read_schema
from llava_api.chat.tools import MOST_CALLS, Toolbox, read_tools
from llava_api.protocol.tools import Function, FunctionName, NamedTool, ToolChoice

BYTES = LLTokenizer("byte")
PLACE = {
    "type": "object",
    "properties": {"at": {"type": "string"}, "deep": {"type": "array", "items": {"type": "object"}}},
    "required": ["at"],
    "additionalProperties": False,
}
FUNCTIONS = (
    Function(name="look", parameters=PLACE),
    Function(name="look_up", description="finds", parameters={"type": "object"}),
    Function(name="wait"),
)
NAMES = [function.name for function in FUNCTIONS]


def toolbox(choice: ToolChoice | None) -> Toolbox:
    given = [(function, f"tools[{index}].function") for index, function in enumerate(FUNCTIONS)]
    found = read_tools(given, choice, parallel=True)
    assert found is not None
    return found


def call(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def fits(grammar: str, text: str) -> bool:
    """Whether a model that keeps to ``grammar`` may say ``text`` and stop there."""
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    # One at a time, as an engine asks.
    taken = all(matcher.try_consume_tokens([token]) for token in BYTES.tokenize_str(text))
    return taken and bool(matcher.is_accepting())


SHAPE = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sides": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "sides"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("text", ['{"colour": "red", "sides": 4}', ' {"colour": "blue", "sides": 99}'])
def test_json_of_the_schema(text: str) -> None:
    assert fits(json_grammar(SHAPE), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "red",
        "{}",
        '{"colour": "red"}',
        '{"colour": "green", "sides": 4}',
        '{"colour": "red", "sides": 100}',
        '{"colour": "red", "sides": "4"}',
        '{"colour": "red", "sides": 4, "more": 1}',
        '{"sides": 4, "colour": "red"}',
        '{"colour":"red","sides":4}',
        '{"colour":  "red", "sides": 4}',
        '  {"colour": "red", "sides": 4}',
        '{"colour": "red", "sides": 4} ',
        '{"colour": "red", "sides": 4}{"colour": "red", "sides": 4}',
        'Here: {"colour": "red", "sides": 4}',
        '```json\n{"colour": "red", "sides": 4}\n```',
    ],
)
def test_nothing_but_json_of_the_schema(text: str) -> None:
    assert not fits(json_grammar(SHAPE), text)


@pytest.mark.parametrize("text", ["{}", '{"a": {"b": [1, "\U0001f388", null]}}', ' {"a": -1.5e3}'])
def test_any_object_is_an_object(text: str) -> None:
    assert fits(json_grammar(ANY_OBJECT), text)
    assert not fits(json_grammar(ANY_OBJECT), f"[{text}]")


@pytest.mark.parametrize("value", ["\n}\nstart: /.*/\n", '"}}', "\\", "\u2028\x85", "%ignore", "\U0001f388", "{{"])
def test_a_callers_text_is_data_to_the_grammar(value: str) -> None:
    grammar = json_grammar({"const": value})
    assert fits(grammar, json.dumps(value, ensure_ascii=False))
    assert not fits(grammar, '"x"')
    assert not fits(grammar, "x")


REQUIRED = toolbox("required")
AUTO = toolbox(None)
ONE = toolbox(NamedTool(type="function", function=FunctionName(name="look")))
CALLS = [
    [("look", {"at": "door"})],
    [("wait", {})],
    [("look_up", {"a": {"b": '}]"\\', "c": [[{}]]}})],
    [("look", {"at": 'a "quoted\\" brace } and {"name": "wait", "arguments": {}}\n'}), ("wait", {})],
    [("look", {"at": "\U0001f388 é", "deep": [{"x": []}, {}]}), ("look_up", {}), ("look", {"at": ""})],
    [("wait", {})] * MOST_CALLS,
]


def written(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(call(name, arguments) for name, arguments in calls)


@pytest.mark.parametrize("calls", CALLS, ids=len)
def test_calls(calls: list[tuple[str, dict[str, Any]]]) -> None:
    for box in (REQUIRED, AUTO):
        for space in ("", " "):
            assert fits(tools_grammar(box, None), space + written(calls))
    assert fits(tools_grammar(AUTO, SHAPE), written(calls))


NO_CALLS = [
    call("look", {}),
    call("look", {"at": 5}),
    call("look", {"at": "a", "more": 1}),
    call("wait", {"a": 1}),
    call("loo", {"at": "a"}),
    call("other", {}),
    '{"name": "wait"}',
    '{"arguments": {}, "name": "wait"}',
    '{"name": "wait", "arguments": {}, "id": 1}',
    '{"name": "wait", "arguments": "{}"}',
    '{"name": "wait", "arguments": {}',
    '{"name": "wait", "arguments": {}}\n',
    '{"name": "wait", "arguments": {}} and so on',
    '{"name": "wait", "arguments": {}}{"name": "wait", "arguments": {}}',
    '{"name": "wait", "arguments": {}}\n\n{"name": "wait", "arguments": {}}',
    written([("wait", {})] * (MOST_CALLS + 1)),
    "{",
    "{}",
    " {hello}",
]


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_not_said_in_its_place(text: str) -> None:
    assert not fits(tools_grammar(REQUIRED, None), text)
    assert not fits(tools_grammar(AUTO, None), text)
    assert not fits(tools_grammar(AUTO, SHAPE), text)


@pytest.mark.parametrize(
    "text", ["", " A red circle.", "A {brace} inside", "two\nlines\n{", "\U0001f388", "\nfirst", '[{"name": "wait"}]']
)
def test_free_text_only_where_calling_is_left_to_the_model(text: str) -> None:
    assert fits(tools_grammar(AUTO, None), text)
    assert not fits(tools_grammar(REQUIRED, None), text)
    assert not fits(tools_grammar(AUTO, SHAPE), text)


def test_json_or_a_call() -> None:
    grammar = tools_grammar(AUTO, SHAPE)
    assert fits(grammar, ' {"colour": "red", "sides": 4}')
    assert fits(grammar, call("wait", {}))


def test_one_call_where_one_is_wanted() -> None:
    grammar = tools_grammar(ONE, None)
    assert fits(grammar, call("look", {"at": "a"}))
    assert not fits(grammar, written([("look", {"at": "a"})] * 2))
    assert not fits(grammar, call("wait", {}))


# Reading back


def read_in(pieces: list[str], names: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """(free text, calls) as a reader of these pieces makes them out."""
    reader = CallReader(names)
    found = [part for piece in pieces for part in reader.read(piece)] + [reader.finish()]
    calls: list[list[str]] = []
    for part in found:
        if not isinstance(part, CallPart):
            continue
        if part.name is not None:
            assert part.index == len(calls)
            calls.append([part.name, ""])
        assert part.index == len(calls) - 1
        calls[-1][1] += part.arguments
    return "".join(part for part in found if isinstance(part, str)), [(name, text) for name, text in calls]


@pytest.mark.parametrize("calls", CALLS, ids=len)
def test_calls_are_read_back_wherever_their_text_is_cut(calls: list[tuple[str, dict[str, Any]]]) -> None:
    text = written(calls)
    cuts = [[text[:cut], text[cut:]] for cut in range(len(text) + 1)]
    steps = [[text[at : at + size] for at in range(0, len(text), size)] for size in (1, 2, 3, 7)]
    for pieces in [*cuts, *steps]:
        said, found = read_in(pieces, NAMES)
        assert said == ""
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


TEXTS = ["", "A red circle.", "wait", 'A {"name": "wait", "arguments": {}}', '\n{"name": "wait", "arguments": {}}']
JSONS = ['{"colour": "red", "sides": 4}', '{"name": "anna"}', '{"name": "waiter", "arguments": {}}', '{"name": "wait"}']


@pytest.mark.parametrize("text", TEXTS + JSONS)
def test_other_text_is_read_as_it_is_wherever_it_is_cut(text: str) -> None:
    for cut in range(len(text) + 1):
        assert read_in([text[:cut], text[cut:]], NAMES) == (text, [])
    assert read_in(list(text), NAMES) == (text, [])


OPEN = {"type": "object", "properties": {"a": {}}, "additionalProperties": True}
ANYTHING = {"$ref": "#/$defs/a", "$defs": {"a": True}}
BOTH = {"type": "object", "properties": {"name": {"type": "string"}, "arguments": {"type": "integer"}}}


@pytest.mark.parametrize(
    "schema", [ANY_OBJECT, OPEN, BOTH, {}, {"anyOf": [SHAPE, SHAPE]}, {"type": "string"}, ANYTHING]
)
def test_what_could_be_taken_for_a_call_is_known(schema: dict[str, Any]) -> None:
    """Beside tools such a schema is refused: an answer of it might begin as a call does."""
    assert not differs_from_calls(read_schema(schema, "schema").kept)


def test_what_cannot_be_taken_for_a_call_is_known() -> None:
    assert differs_from_calls(SHAPE)
    named = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert differs_from_calls(read_schema(named, "schema").kept)
