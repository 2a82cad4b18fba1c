"""Answers in a form: a schema that the engine could not keep to is the caller's error and nobody else's."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llava_api.engine.grammar_check import GrammarChecker
from tests.api.test_chat import CHAT, text_body
from tests.support.scripted_engine import ScriptedEngine
from tests.unit.test_grammar import fits

SCHEMA = "response_format.json_schema.schema"


def form(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def tool(parameters: Any, name: str = "look") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def deep(levels: int, inmost: dict[str, Any] | None = None) -> dict[str, Any]:
    schema = inmost or {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"in": schema}}
    return schema


def optional(fields: int) -> dict[str, Any]:
    names = {f"p{place}": {"type": "integer"} for place in range(fields)}
    return {"type": "object", "properties": names, "additionalProperties": False}


SIDES = {"type": "object", "properties": {"sides": {"type": "integer"}}, "required": ["sides"]}
LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
BAD: dict[str, Any] = {
    "too deep": deep(33),
    "far too deep": deep(300),
    "deep lists": {"enum": json.loads("[" * 900 + "]" * 900)},
    "too large": {"type": "string", "description": "x" * 64_000},
    "enum too large": {"enum": list(range(1001))},
    "enum inside": {"type": "object", "properties": {"a": {"enum": list(range(1001))}}},
    "pattern too long": {"type": "string", "pattern": "a" * 513},
    "pattern of names too long": {"type": "object", "patternProperties": {"a" * 513: {}}},
    "minItems": {"type": "array", "minItems": 10**9},
    "maxItems": {"type": "array", "maxItems": 10**9},
    "minProperties": {"type": "object", "minProperties": 10**9},
    "minItems far inside": deep(40, {"type": "array", "minItems": 10**9}),
    "minItems in what is else data": {"$ref": "#/default", "default": {"type": "array", "minItems": 10**9}},
    "x-guidance far inside": deep(40, {"type": "integer", "x-guidance": {}}),
    "minLength": {"type": "string", "minLength": 10**9},
    "negative": {"type": "array", "minItems": -1},
    "a count that is text": {"type": "array", "minItems": "three"},
    "remote": {"$ref": "http://127.0.0.1:9/schema.json"},
    "file": {"$ref": "file:///etc/passwd"},
    "loop": LOOP,
    "loop of one": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "loop of the whole": {"$ref": "#"},
    "loop through allOf": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    "loop that is not used": {"type": "integer", "$defs": LOOP["$defs"]},
    "dangling": {"$ref": "#/$defs/nowhere"},
    "a reference that is no text": {"$ref": 5},
    "unsupported keyword": {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"type": "string"}},
    "unknown type": {"type": "text"},
    "unsatisfiable": {"type": "integer", "minimum": 5, "maximum": 3},
    "unsatisfiable field": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "lookahead": {"type": "string", "pattern": "(?=a)b"},
    "back reference": {"type": "string", "pattern": r"(a)\1"},
    "no pattern": {"type": "string", "pattern": "(("},
    "x-guidance": {"type": "integer", "x-guidance": {"whitespace_flexible": True}},
    "x-guidance inside": {"anyOf": [{"type": "integer", "x-guidance": {"coerce_one_of": True}}]},
    "properties in a list": {"type": "object", "properties": [1]},
    "enum that is no list": {"enum": "red"},
    "intersected patterns": {"allOf": [{"pattern": f"^(a|b)*a(a|b){{{n}}}"} for n in range(5, 60)], "type": "string"},
    "many kinds at once": {"anyOf": [{"type": "array", "maxItems": 9999 - n, "items": {}} for n in range(800)]},
    # These compile, and fail or take all of the engine's time once an answer is made.
    "more optional fields than a row": optional(1200),
    "a multiple that takes too long": {"type": "integer", "multipleOf": 999_983},
    "a multiple that cannot begin": {"type": "integer", "multipleOf": 999_999_937},
    "a union that is too large": {
        "type": "array",
        "items": {
            "anyOf": [
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "maxItems": most}}
                for most in range(1, 400)
            ]
        },
    },
    "slow patterns of names": {
        "type": "object",
        "patternProperties": {f"^a{n}.*b{n}$": {"type": "integer"} for n in range(300)},
        "additionalProperties": False,
    },
}
NEEDS_A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BAD |= {
    "a divisor that is too large": {"type": "integer", "multipleOf": 1001},
    "many divisors": {
        "type": "object",
        "properties": {f"a{n}": {"type": "integer", "multipleOf": 7} for n in range(51)},
    },
    "many alternatives": {"anyOf": [{"type": "integer"}] * 65},
    "a special token": {"const": "a</s>b"},
    "a special token as a name": {"type": "object", "properties": {"<image>": {"type": "integer"}}},
}
GOOD: dict[str, Any] = {
    "a format that is only a remark": {"type": "string", "format": "phone-number"},
    "nothing": {},
    "remote draft": {"$schema": "http://127.0.0.1:9/schema.json", "type": "integer"},
    "limits": {
        "type": "array",
        "minItems": 1,
        "maxItems": 10_000,
        "items": {"type": "string", "maxLength": 100_000, "pattern": "^a"},
    },
    "deep": deep(31),
    "enum": {"enum": list(range(1000))},
    "a tree": {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}}}},
    },
    "the whole again": {"type": "object", "properties": {"in": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
    "fields with the names of keywords": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("$ref", "x-guidance", "enum", "pattern", "minItems")},
        "required": ["$ref"],
    },
    "data with the names of keywords": {"const": {"$ref": "http://127.0.0.1:9/", "x-guidance": 1, "minItems": 10**9}},
    "pydantic's": {
        "title": "Shape",
        "type": "object",
        "properties": {"colour": {"title": "Colour", "type": "string", "default": "red", "examples": ["red"]}},
        "required": ["colour"],
    },
    "200 optional fields": optional(200),
    "fields beside anyOf": {**NEEDS_A, "anyOf": [{"properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
    "fields beside one allOf": {**NEEDS_A, "allOf": [{"properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
    "fields beside a reference": {
        "$ref": "#/$defs/base",
        "properties": {"b": {"type": "integer"}},
        "$defs": {"base": NEEDS_A},
    },
    "a required field that is not described": {"type": "object", "properties": {"a": {}}, "required": ["b"]},
    "a percent-encoded reference": {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "integer"}}},
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_schema_is_refused_before_the_engine_is_asked(
    client: httpx.AsyncClient, engine: ScriptedEngine, name: str
) -> None:
    started = time.monotonic()
    reply = await client.post(CHAT, json=text_body(response_format=form(BAD[name], strict=True)))
    assert time.monotonic() - started < 10
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", SCHEMA, "invalid_schema")
    assert error["message"].startswith(f"Invalid schema for '{SCHEMA}': ")
    assert len(error["message"]) < 600
    assert engine.requests == []
    assert (await client.post(CHAT, json=text_body(response_format=form(GOOD["pydantic's"])))).status_code == 200


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_schema_is_taken(client: httpx.AsyncClient, engine: ScriptedEngine, name: str) -> None:
    reply = await client.post(CHAT, json=text_body(response_format=form(GOOD[name], strict=True, description="x")))
    assert reply.status_code == 200, reply.text
    assert engine.requests[-1].sampling.grammar is not None


async def test_the_engine_is_given_a_grammar_of_the_schema(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await client.post(CHAT, json=text_body(response_format=form(SIDES)))
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert fits(grammar, '{"sides": 4}')
    assert not fits(grammar, '{"sides": "four"}')
    for open_form in ({"type": "json_object"}, form(None), {"type": "json_schema", "json_schema": {"name": "a"}}):
        await client.post(CHAT, json=text_body(response_format=open_form))
        grammar = engine.requests[-1].sampling.grammar
        assert grammar is not None
        assert fits(grammar, '{"anything": [1]}')
        assert not fits(grammar, "4")
    await client.post(CHAT, json=text_body(response_format={"type": "text"}))
    assert engine.requests[-1].sampling.grammar is None


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_object", "schema": SIDES},
        {"type": "json_object", "value": SIDES},
        {"type": "json", "value": SIDES},
        {"type": "json_schema", "schema": SIDES},
        {"type": "json_schema", "value": {"name": "it", "schema": SIDES}},
        {"type": "json_schema", "json_schema": {"schema": SIDES}},
        {"type": "json_schema", "json_schema": {"name": "calendar event", "schema": SIDES, "strict": None}},
    ],
    ids=str,
)
async def test_the_schema_may_be_where_other_servers_have_it(
    client: httpx.AsyncClient, engine: ScriptedEngine, given: dict[str, Any]
) -> None:
    reply = await client.post(CHAT, json=text_body(response_format=given))
    assert reply.status_code == 200
    assert "x-llava-ignored" not in reply.headers
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert fits(grammar, '{"sides": 4}')
    assert not fits(grammar, '{"sides": "four"}')


@pytest.mark.parametrize("knob", [{"min_tokens": 5}, {"ignore_eos": True}])
async def test_knobs_that_forbid_the_end_do_not_go_with_a_form(client: httpx.AsyncClient, knob: dict[str, Any]) -> None:
    reply = await client.post(CHAT, json=text_body(response_format={"type": "json_object"}, **knob))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(knob)))


async def test_the_complaint_about_a_functions_schema_names_it_and_shows_no_grammar(client: httpx.AsyncClient) -> None:
    tools = [tool({"type": "object"}), tool({"properties": {"a": {"minLength": "five"}}}, "find")]
    error = (await client.post(CHAT, json=text_body(tools=tools))).json()["error"]
    assert error["code"] == "invalid_schema"
    assert "minLength" in error["message"]
    assert "call_0" not in error["message"]
    assert error["param"] == "tools[1].function.parameters"


# What it costs others


async def longest_pause(client: httpx.AsyncClient, body: dict[str, Any]) -> float:
    """The most processor time that the event loop spent at once, serving nobody else, while ``body`` was answered."""
    data = json.dumps(body).encode()
    worst = 0.0
    asking = asyncio.create_task(client.post(CHAT, content=data))
    while not asking.done():
        before = time.thread_time()
        await asyncio.sleep(0.005)
        worst = max(worst, time.thread_time() - before)
    assert asking.result().status_code in (200, 400)
    return worst


CHAIN = {
    "$defs": {**{f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(1600)}, "a1600": {"type": "string"}},
    "$ref": "#/$defs/a0",
}
COSTLY: dict[str, dict[str, Any]] = {
    "a chain of references": text_body(response_format=form(CHAIN)),
    "four tools of such chains": text_body(tools=[tool(CHAIN, f"look{n}") for n in range(4)]),
    "a large schema": text_body(response_format=form(optional(1500))),
    "128 tools": text_body(tools=[tool(optional(70), f"look{n}") for n in range(128)]),
    "many wrong biases": text_body(logit_bias={str(n): "x" for n in range(400_000)}),
    "many unknown fields": text_body(**{f"a{n}": 1 for n in range(400_000)}),
    "many unknown fields of a message": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "", **{f"a{n}": 1 for n in range(400_000)}}],
    },
}


@pytest.mark.parametrize("name", COSTLY)
async def test_the_server_goes_on_while_a_costly_request_is_read(
    client: httpx.AsyncClient, app: FastAPI, name: str
) -> None:
    app.state.services.settings.max_body_bytes = 100_000_000
    # Read on the event loop, they take several seconds; the machine's other work can take one.
    assert await longest_pause(client, COSTLY[name]) < 0.4


# The process that tries grammars


async def test_the_process_that_died_of_a_grammar_comes_back() -> None:
    checker = GrammarChecker()
    try:
        assert not await checker.check('start: "a"')
        assert checker.process is not None
        checker.process.kill()
        await checker.process.wait()
        assert not await checker.check('start: "b"')
        assert await checker.check("start: nowhere")
        assert not await checker.check('start: "c"')
    finally:
        await checker.close()


async def test_a_process_killed_in_the_middle_is_a_refusal_and_the_next_grammar_is_tried() -> None:
    checker = GrammarChecker()
    slow = f"start: %json {json.dumps({**BAD['slow patterns of names'], 'title': 'killed'})}"
    try:
        assert not await checker.check('start: "a"')
        assert checker.process is not None
        asking = asyncio.create_task(checker.check(slow))
        await asyncio.sleep(0.1)
        checker.process.kill()
        assert await asking
        assert not await checker.check('start: "b"')
    finally:
        await checker.close()


async def test_a_deadline_ends_what_takes_too_long() -> None:
    checker = GrammarChecker(deadline_seconds=0.5)
    slow = f"start: %json {json.dumps(BAD['slow patterns of names'])}"
    try:
        started = time.monotonic()
        assert "too long" in await checker.check(slow)
        assert time.monotonic() - started < 2
        # Known by now: nobody waits for it again.
        started = time.monotonic()
        assert "too long" in await checker.check(slow)
        assert time.monotonic() - started < 0.1
    finally:
        await checker.close()


async def test_a_caller_that_leaves_does_not_leave_its_answer_to_the_next() -> None:
    checker = GrammarChecker()
    slow = f"start: %json {json.dumps(BAD['slow patterns of names'])}"
    try:
        leaving = asyncio.create_task(checker.check(slow))
        await asyncio.sleep(0.3)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert "nowhere" in await checker.check("start: nowhere")
        assert not await checker.check('start: "a"')
    finally:
        await checker.close()


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_api.engine.grammar_check.MOST_REMEMBERED", 3)
    checker = GrammarChecker()
    try:
        for number in range(6):
            await checker.check(f'start: "{number}"')
        assert len(checker.known) == 3
    finally:
        await checker.close()


# What is no answer in the form


@pytest.mark.parametrize("text", ['{"a": "b', "", '{"a": 1}}'])
async def test_an_answer_that_breaks_off_is_not_said_to_be_complete(
    client: httpx.AsyncClient, engine: ScriptedEngine, text: str
) -> None:
    """A stop text of the caller's may lie within it, and llguidance may give up while it is made."""
    engine.say(text)
    body = text_body(response_format={"type": "json_object"})
    assert (await client.post(CHAT, json=body)).json()["choices"][0]["finish_reason"] == "length"
    engine.say('{"a": 1}')
    assert (await client.post(CHAT, json=body)).json()["choices"][0]["finish_reason"] == "stop"


async def test_one_callers_schemas_do_not_hold_anothers_up() -> None:
    checker = GrammarChecker()
    slow = [f"start: %json {json.dumps({**BAD['slow patterns of names'], 'title': str(n)})}" for n in range(4)]
    try:
        assert not await checker.check('start: "a"')
        crowd = [asyncio.create_task(checker.check(grammar, "crowd")) for grammar in slow]
        await asyncio.sleep(0.1)
        await checker.check('start: "b"', "single")
        assert sum(task.done() for task in crowd) <= 1
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert checker.trials.admission.queues == {}
    finally:
        await checker.close()
