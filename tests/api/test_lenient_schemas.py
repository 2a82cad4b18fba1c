"""Schemas that ask for more than a grammar can hold, and schemas that are written sloppily."""

import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from llava_api.chat.grammar import json_grammar
from llava_api.chat.schema import read_schema
from llava_api.errors import InvalidRequest
from tests.api.test_chat import CHAT, prompt_of, text_body
from tests.api.test_structured_output import SCHEMA, form, tool
from tests.api.test_unread_fields import HEADER, METRIC
from tests.support.metrics_page import read_page
from tests.support.scripted_engine import ScriptedEngine
from tests.unit.test_grammar import fits


def thing(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
LOOK_AHEAD = r"^(?!-)[a-z-]+$"
A_OR_B = {"A": thing({"k": {"const": "a"}}, required=["k"]), "B": thing({"k": {"enum": ["b"]}}, required=["k"])}
LEFT_OUT: dict[str, tuple[dict[str, Any], set[str], list[Any], list[Any]]] = {
    # schema, keywords that are left out, values that fit, values that still do not
    "not": (thing({"a": {"not": NUMBER}}), {"not"}, [{"a": "x"}, {}], [{"b": 1}]),
    "not of everything": (thing({"a": {"type": "array", "items": {"not": {}}}}), {"not"}, [{"a": []}], [{"a": 1}]),
    "not in anyOf": (thing({"a": {"anyOf": [{"not": {}}, TEXT]}}), {"not"}, [{"a": "x"}], [{"b": 1}]),
    "not of required": (
        thing({"a": TEXT, "b": TEXT}, **{"not": {"required": ["a", "b"]}}),
        {"not"},
        [{"a": ""}],
        [{"c": 1}],
    ),
    "uniqueItems": ({"type": "array", "items": NUMBER, "uniqueItems": True}, {"uniqueItems"}, [[1, 2]], [["a"]]),
    "contains": (
        {"type": "array", "contains": TEXT, "minContains": 2},
        {"contains", "minContains"},
        [["a", "b"]],
        ["a"],
    ),
    "if": (
        thing({"a": TEXT}, **{"if": {"required": ["a"]}, "then": thing({"b": NUMBER}, required=["b"]), "else": {}}),
        {"if", "then", "else"},
        [{"a": "x", "b": 1}, {"c": 1}],
        [{"a": 1}],
    ),
    "dependentRequired": (
        thing({"a": TEXT, "b": TEXT}, dependentRequired={"a": ["b"]}),
        {"dependentRequired"},
        [{"a": "x", "b": "y"}],
        [{"a": 1}, {"c": 1}],
    ),
    "dependentRequired of a name that is not described": (
        thing({"a": TEXT}, dependentRequired={"a": ["b"]}),
        {"dependentRequired"},
        [{"a": "x", "b": "y"}],
        [{"a": 1}],
    ),
    "dependentSchemas": (
        thing({"a": TEXT}, dependentSchemas={"a": thing({"b": NUMBER}, required=["b"])}),
        {"dependentSchemas"},
        [{"a": "x", "b": 1}],
        [{"a": 1}],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": TEXT, "additionalProperties": NUMBER},
        {"propertyNames"},
        [{"x": 1}],
        [{"x": "y"}],
    ),
    "unevaluatedProperties": (
        {"allOf": [thing({"a": TEXT})], "unevaluatedProperties": False},
        {"unevaluatedProperties"},
        [{"a": "x"}],
        [{"a": 1}],
    ),
    "look-ahead": ({"type": "string", "pattern": LOOK_AHEAD}, {"pattern"}, ["a-b"], [1]),
    "look-behind": ({"type": "string", "pattern": "(?<=a)b"}, {"pattern"}, ["ab"], [1]),
    "word boundary": ({"type": "string", "pattern": r"\bcat\b"}, {"pattern"}, ["a cat"], [1]),
    "back reference": ({"type": "string", "pattern": r"^(a|b)\1$"}, {"pattern"}, ["aa"], [1]),
    "pattern of names": (
        thing({"a": NUMBER}, patternProperties={LOOK_AHEAD: TEXT}, additionalProperties=False),
        {"patternProperties", "additionalProperties"},
        [{"b": "x"}],
        [{"a": "x"}],
    ),
    "minProperties": (thing({"a": TEXT, "b": TEXT}, minProperties=1), {"minProperties"}, [{"a": "x"}], [{"c": 1}]),
    "oneOf": (
        {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "string", "pattern": "^a"}]},
        {"oneOf"},
        ["bcd", "abcde"],
        [1, "bcde"],
    ),
    "a reference to elsewhere": (
        thing({"a": {"$ref": "https://example.com/a.json", "description": "x"}}),
        {"$ref"},
        [{"a": {"anything": [1]}}],
        [{"b": 1}],
    ),
    "a reference to a file": (thing({"a": {"$ref": "file:///etc/passwd"}}), {"$ref"}, [{"a": 1}], [{"b": 1}]),
    "a reference beside keywords": (
        thing({"a": {"$ref": "other.json", "type": "string"}}),
        {"$ref"},
        [{"a": "x"}],
        [{"a": 1}],
    ),
    "a reference beside properties": (
        thing({"a": TEXT}, **{"$ref": "https://example.com/base.json"}),
        {"$ref"},
        [{"a": "x", "more": 1}],
        [{"a": 1}],
    ),
    "a reference to nothing": (thing({"a": {"$ref": "#/$defs/gone"}}), {"$ref"}, [{"a": 1}], [{"b": 1}]),
    "a reference to data": (thing({"a": {"$ref": "#/x"}}, x=[1]), {"$ref"}, [{"a": 1}], [{"b": 1}]),
    "a reference into what was left out": (
        thing({"a": {"$ref": "#/not/properties/b"}}, **{"not": thing({"b": TEXT})}),
        {"not", "$ref"},
        [{"a": 1}],
        [{"b": 1}],
    ),
    "unknown type": (thing({"a": {"type": "path"}}), {"type"}, [{"a": "x"}], [{"b": 1}]),
}
KEPT: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    # Held exactly, so that nothing is said. Schema, values that fit, values that do not
    "null for not given": (
        {"type": "object", "properties": None, "required": None, "enum": None, "items": None, "description": None},
        [{}, {"a": 1}],
        [1],
    ),
    "null as a property's schema": (thing({"a": None}), [{"a": 1}, {"a": None}], [{"b": 1}]),
    "null as a constant": (thing({"a": {"const": None}}), [{"a": None}], [{"a": 1}]),
    "types in capitals": (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING"}, "b": {"type": ["Integer", "NULL"]}}},
        [{"a": "x", "b": 1}, {"b": None}],
        [{"a": 1}, {"b": "x"}],
    ),
    "Python's types": (
        {"type": "dict", "properties": {"a": {"type": "int"}, "b": {"type": "list", "items": {"type": "any"}}}},
        [{"a": 1, "b": ["x", 2]}],
        [{"a": "x"}, {"b": 1}],
    ),
    "nullable": (
        thing({"a": {"type": "string", "nullable": True}, "b": {"type": "string", "nullable": False}}),
        [{"a": None}, {"a": "x", "b": "y"}],
        [{"a": 1}, {"b": None}],
    ),
    "nullable enum": (thing({"a": {**TEXT, "enum": ["x"], "nullable": True}}), [{"a": None}, {"a": "x"}], [{"a": "y"}]),
    "nullable reference": (
        thing({"a": {"$ref": "#/$defs/n", "nullable": True}}, **{"$defs": {"n": NUMBER}}),
        [{"a": None}, {"a": 1}],
        [{"a": "x"}],
    ),
    "empty lists": (
        thing({"a": {**TEXT, "enum": []}, "b": {"type": []}}, required=[]),
        [{"a": "x", "b": 1}],
        [{"a": 1}],
    ),
    "PHP's empty objects": (thing({"a": [], "b": {"type": "array", "items": []}}), [{"a": 1, "b": [1]}], [{"b": 1}]),
    "PHP's empty properties": (thing([]), [{}], [{"a": 1}]),  # type: ignore[arg-type]
    "numbers as texts": (thing({"a": {**NUMBER, "minimum": "3", "maximum": "5.0"}}), [{"a": 3}], [{"a": 2}, {"a": 6}]),
    "counts as floats": ({"type": "array", "items": NUMBER, "minItems": 1.0}, [[1]], [[]]),
    "required in the property": (
        thing({"a": {**TEXT, "required": True}, "b": {**TEXT, "required": False}}),
        [{"a": ""}],
        [{}],
    ),
    "a type as a property's schema": (thing({"a": "string"}), [{"a": "x"}], [{"a": 1}]),
    "uniqueItems: false": ({"type": "array", "uniqueItems": False}, [[1, 1]], [1]),
    "oneOf of types": ({"oneOf": [TEXT, NUMBER]}, ["x", 1], [[]]),
    "oneOf of constants": ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}]}, ["a", "b"], ["c"]),
    "oneOf that a constant tells apart": (
        {
            "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
            "discriminator": {"propertyName": "k"},
            "$defs": A_OR_B,
        },
        [{"k": "a"}, {"k": "b"}],
        [{"k": "c"}, {}],
    ),
    "a dialect that is nowhere": ({"$schema": "http://127.0.0.1:9/s.json", "$id": "urn:x", **TEXT}, ["x"], [1]),
}


@pytest.mark.parametrize("name", LEFT_OUT)
async def test_what_the_grammar_cannot_hold_is_left_out_and_named_and_refused_if_strict(
    client: httpx.AsyncClient, engine: ScriptedEngine, name: str
) -> None:
    schema, keywords, may, may_not = LEFT_OUT[name]
    error = (await client.post(CHAT, json=text_body(response_format=form(schema, strict=True)))).json()["error"]
    assert (error["param"], error["code"]) == (SCHEMA, "invalid_schema")
    assert any(f"{keyword}: leave it out" in error["message"] for keyword in keywords)
    assert engine.requests == []
    reply = await client.post(CHAT, json=text_body(response_format=form(schema)))
    assert reply.status_code == 200, reply.text
    assert set(reply.headers[HEADER].split(", ")) == {f"{SCHEMA}.{keyword}" for keyword in keywords}
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert [value for value in may if not fits(grammar, json.dumps(value))] == []
    assert [value for value in may_not if fits(grammar, json.dumps(value))] == []


@pytest.mark.parametrize("name", LEFT_OUT)
def test_every_value_that_fits_the_schema_fits_the_grammar(name: str) -> None:
    schema, _, may, may_not = LEFT_OUT[name]
    if "reference" in name or name == "unknown type":
        return
    judge = Draft202012Validator(schema)
    grammar = json_grammar(read_schema(schema, "schema").kept)
    samples = [*may, *may_not, {"a": "x"}, {"a": "ab", "b": 1}, [1, 1], "x"]
    assert any(map(judge.is_valid, may))
    closed = "properties" in schema and "additionalProperties" not in schema
    for value in samples:
        # An object gets no properties that its schema does not name.
        if judge.is_valid(value) and not (
            closed and isinstance(value, dict) and not value.keys() <= schema["properties"].keys()
        ):
            assert fits(grammar, json.dumps(value)), value


@pytest.mark.parametrize("name", KEPT)
async def test_sloppy_spellings_are_read_as_they_are_meant(
    client: httpx.AsyncClient, engine: ScriptedEngine, name: str
) -> None:
    schema, may, may_not = KEPT[name]
    reply = await client.post(CHAT, json=text_body(response_format=form(schema, strict=True)))
    assert reply.status_code == 200, reply.text
    assert HEADER not in reply.headers
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert [value for value in may if not fits(grammar, json.dumps(value))] == []
    assert [value for value in may_not if fits(grammar, json.dumps(value))] == []


UNIQUE = thing({"a": {"type": "array", "uniqueItems": True}})
FUNCTION = {"type": "function", "name": "look", "parameters": UNIQUE}
PLACES: list[tuple[str, dict[str, Any], str]] = [
    # path, fields, header
    (CHAT, {"tools": [tool(UNIQUE), tool(UNIQUE, "find")]}, "tools.function.parameters.uniqueItems"),
    (CHAT, {"response_format": {"type": "json_object", "schema": UNIQUE}}, "response_format.schema.uniqueItems"),
    ("/v1/responses", {"input": "Hello.", "tools": [FUNCTION]}, "tools.parameters.uniqueItems"),
    (
        "/v1/responses",
        {"input": "Hello.", "text": {"format": {"type": "json_schema", "name": "it", "schema": UNIQUE}}},
        "text.format.schema.uniqueItems",
    ),
    (
        "/v1/messages",
        {"max_tokens": 9, "tools": [{"name": "look", "input_schema": UNIQUE}]},
        "tools.input_schema.uniqueItems",
    ),
    (
        "/v1/messages",
        {"max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": UNIQUE}}},
        "output_config.format.schema.uniqueItems",
    ),
]


@pytest.mark.parametrize(("path", "fields", "header"), PLACES, ids=[place[2] for place in PLACES])
async def test_every_endpoint_names_it_once(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], header: str
) -> None:
    asked = {} if "input" in fields else {"messages": [{"role": "user", "content": "Hello."}]}
    reply = await client.post(path, json={"model": "tiny", **asked, **fields})
    assert (reply.status_code, reply.headers[HEADER]) == (200, header)


async def test_the_metric_names_the_keyword_and_the_header_is_bounded(client: httpx.AsyncClient) -> None:
    every = [schema for schema, *_ in LEFT_OUT.values()]
    tools = [tool(thing({f"a{n}": one for n, one in enumerate(every)}))]
    reply = await client.post(CHAT, json=text_body(tools=tools, **{f"x{n}": 1 for n in range(5)}))
    names = reply.headers[HEADER].split(", ")
    assert (len(names), names[:2], names[-1]) == (17, ["x0", "x1"], "...")
    labels = read_page((await client.get("/metrics")).text).labels(METRIC, "field")
    assert {"other", "not", "uniqueItems", "$ref", "pattern"} <= labels
    assert not any(label.startswith(("x", "a")) for label in labels - {"additionalProperties"})


async def test_a_tool_is_described_as_the_caller_wrote_it(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json=text_body(tools=[tool(UNIQUE)]))
    assert json.dumps(UNIQUE) in prompt_of(engine)


async def test_only_the_strict_function_is_refused(client: httpx.AsyncClient) -> None:
    strict = tool(UNIQUE, "find")
    strict["function"]["strict"] = True
    error = (await client.post(CHAT, json=text_body(tools=[tool(UNIQUE), strict]))).json()["error"]
    assert error["param"] == "tools[1].function.parameters"
    assert "properties.a.uniqueItems" in error["message"]


@pytest.mark.parametrize("settings_made", [{"strict_fields": True}])
async def test_strict_fields_refuses_too(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = await client.post(CHAT, json=text_body(tools=[tool(UNIQUE)]))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools[0].function.parameters")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (thing({"a": {"anyOf": [TEXT, {"type": "array", "minItems": 10**6}]}}), "properties.a.anyOf[1].minItems"),
        (thing({"a": {"enum": list(range(1001))}}), "properties.a.enum"),
        (thing({"b": {"$ref": "#/$defs/c"}}, **{"$defs": {"c": {"$ref": "#/$defs/c"}}}), "$defs.c.$ref"),
        (thing({"a": {"items": {**TEXT, "minLength": "five"}}}), "properties.a.items.minLength must be a number"),
        (thing({"a": {"anyOf": [TEXT, 5]}}), "properties.a.anyOf must have schemas"),
        (thing({"a": thing([1])}), "properties.a.properties must be an object"),  # type: ignore[arg-type]
        (thing({"a": TEXT, "b": {**TEXT, "pattern": "(("}}), "properties.b has a pattern that does not work"),
        (thing({"x" * 9_000: {"type": "string", "pattern": "a" * 600}}), "properties." + "x" * 64),
    ],
    ids=["count", "enum", "loop", "kind", "no schema", "no object", "pattern", "long name"],
)
async def test_a_refusal_says_where_in_the_schema_the_bound_is_exceeded(
    client: httpx.AsyncClient, schema: dict[str, Any], place: str
) -> None:
    error = (await client.post(CHAT, json=text_body(tools=[tool(schema)]))).json()["error"]
    assert (error["param"], error["code"]) == ("tools[0].function.parameters", "invalid_schema")
    assert place in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("value", [5, {"a": 1}, [1], "x", True, [None], [[]], {"type": 5}])
@pytest.mark.parametrize(
    "keyword",
    [
        *("type", "properties", "required", "items", "enum", "const", "anyOf", "oneOf", "allOf", "pattern", "format"),
        *(
            "patternProperties",
            "additionalProperties",
            "minProperties",
            "dependentRequired",
            "nullable",
            "$ref",
            "$defs",
        ),
    ],
)
def test_no_value_of_a_keyword_breaks_the_reader(keyword: str, value: Any) -> None:
    for schema in ({keyword: value}, thing({"a": {keyword: value}, "b": value}, oneOf=[{keyword: value}, TEXT])):
        with suppress(InvalidRequest):
            json.dumps(read_schema(schema, "schema").kept)
