"""Functions: what the model is told of them, and how its calls come back, whole and streamed."""

import json
from typing import Any

import httpx
import pytest

from tests.api.test_chat import CHAT, prompt_of, text_body
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks
from tests.unit.test_grammar import fits

PLACE = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}


def function(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    described = {"name": name, **more} if parameters is None else {"name": name, "parameters": parameters, **more}
    return {"type": "function", "function": described}


TOOLS = [function("look", PLACE, description="Looks at a place."), function("wait")]
LOOK, WAIT = '{"name": "look", "arguments": {"at": "the \\"door\\" }{"}}', '{"name": "wait", "arguments": {}}'
ARGUMENTS = '{"at": "the \\"door\\" }{"}'


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def joined(received: list[dict[str, Any]], index: int = 0) -> tuple[str, list[dict[str, Any]], str | None]:
    """(text, calls, finish reason) of one choice, put together as a client does it."""
    text, calls, reason = "", [], None
    for chunk in received:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            text += choice["delta"].get("content") or ""
            for delta in choice["delta"].get("tool_calls", ()):
                if delta["index"] == len(calls):
                    assert delta["type"] == "function"
                    calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
                else:
                    # An id or a name comes once; the last call is the one that goes on.
                    assert set(delta) == {"index", "function"}
                    assert set(delta["function"]) == {"arguments"}
                assert delta["index"] == len(calls) - 1
                calls[-1]["arguments"] += delta["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return text, calls, reason


# What comes back


async def test_a_call_whole(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.say(" " + LOOK[:9], LOOK[9:])
    (choice,) = (await client.post(CHAT, json=text_body(tools=TOOLS))).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}
    assert call["id"].startswith("call_")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 500])
async def test_calls_streamed_in_odd_pieces(client: httpx.AsyncClient, engine: ScriptedEngine, size: int) -> None:
    engine.say(*cut(f" {LOOK}\n{WAIT}\n{LOOK}", size))
    received = chunks((await client.post(CHAT, json=text_body(tools=TOOLS, stream=True))).content)
    text, calls, reason = joined(received)
    assert (text, reason) == ("", "tool_calls")
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("look", ARGUMENTS),
        ("wait", "{}"),
        ("look", ARGUMENTS),
    ]
    assert len({call["id"] for call in calls}) == 3


async def test_arguments_are_sent_as_they_come(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """A long argument is not held back until its call is whole."""
    engine.say(*cut(LOOK, 4))
    received = chunks((await client.post(CHAT, json=text_body(tools=TOOLS, stream=True))).content)
    with_arguments = [chunk for chunk in received if chunk["choices"][0]["delta"].get("tool_calls")]
    assert len(with_arguments) > 4


async def test_each_choice_has_its_own_calls(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.say(*cut(LOOK, 7))
    engine.other_choices = {1: (*cut("Just some words that are no call.", 1)[: len(engine.texts) - 1], " End.")}
    body = text_body(tools=TOOLS, n=2, temperature=1)
    first, second = (await client.post(CHAT, json=body)).json()["choices"]
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
    assert "tool_calls" not in second["message"]
    streamed = chunks((await client.post(CHAT, json={**body, "stream": True})).content)
    assert joined(streamed, 0)[2] == "tool_calls"
    assert joined(streamed, 1) == (second["message"]["content"], [], "stop")


async def test_copies_of_a_call_have_ids_of_their_own(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.say(LOOK)
    for stream in (False, True):
        reply = await client.post(CHAT, json=text_body(tools=TOOLS, n=3, temperature=0, stream=stream))
        if stream:
            ids = [joined(chunks(reply.content), index)[1][0]["id"] for index in range(3)]
        else:
            ids = [choice["message"]["tool_calls"][0]["id"] for choice in reply.json()["choices"]]
        assert len(set(ids)) == 3


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("text", ["A red circle.", "", "[1]", "wait", "Call look? {no}"])
async def test_text_stays_text(client: httpx.AsyncClient, engine: ScriptedEngine, text: str, stream: bool) -> None:
    engine.say(*cut(text, 2), "")
    reply = await client.post(CHAT, json=text_body(tools=TOOLS, stream=stream))
    if stream:
        assert joined(chunks(reply.content)) == (text, [], "stop")
        return
    (choice,) = reply.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("said", [LOOK[:-1], LOOK[:40], f"{WAIT}\n{LOOK[:10]}"])
async def test_an_answer_that_ends_early_says_length(
    client: httpx.AsyncClient, engine: ScriptedEngine, said: str, stream: bool
) -> None:
    engine.say(*cut(said, 3))
    engine.finish_reason = "length"
    reply = await client.post(CHAT, json=text_body(tools=TOOLS, stream=stream))
    if stream:
        text, calls, reason = joined(chunks(reply.content))
        assert (text, len(calls), reason) == ("", 1, "length")
        return
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["tool_calls"]) == 1


async def test_the_beginning_of_a_call_that_never_came_is_no_text(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.say('{"na', "me")
    engine.finish_reason = "length"
    (choice,) = (await client.post(CHAT, json=text_body(tools=TOOLS))).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


async def test_json_and_tools_together(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    schema = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}
    engine.say(*cut('{"red": true}', 3))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = await client.post(CHAT, json=text_body(tools=TOOLS, response_format=form))
    assert reply.json()["choices"][0]["message"]["content"] == '{"red": true}'
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert fits(grammar, WAIT)
    assert not fits(grammar, "words")
    assert fits(grammar, '{"red": true}')


# Who may be called

CHOICES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # name, fields, what may be said, what may not
    ("auto", {}, ["Words.", LOOK, f"{LOOK}\n{WAIT}"], ["{}"]),
    ("auto said", {"tool_choice": "auto"}, ["Words.", LOOK], ["{}"]),
    ("required", {"tool_choice": "required"}, [LOOK, f"{LOOK}\n{WAIT}"], ["Words.", ""]),
    ("named", {"tool_choice": named("wait")}, [WAIT], [LOOK, "Words.", f"{WAIT}\n{WAIT}"]),
    ("allowed", {"tool_choice": allowed("wait")}, [WAIT, "Words.", f"{WAIT}\n{WAIT}"], [LOOK]),
    ("allowed twice", {"tool_choice": allowed("wait", "wait")}, [WAIT, "Words."], [LOOK]),
    ("allowed, required", {"tool_choice": allowed("look", mode="required")}, [LOOK], [WAIT, "Words."]),
    ("one at a time", {"parallel_tool_calls": False}, [LOOK, "Words."], [f"{LOOK}\n{WAIT}"]),
    ("one, required", {"parallel_tool_calls": False, "tool_choice": "required"}, [LOOK], [f"{LOOK}\n{WAIT}"]),
]


@pytest.mark.parametrize(("fields", "may", "may_not"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES])
async def test_what_the_model_may_say(
    client: httpx.AsyncClient, engine: ScriptedEngine, fields: dict[str, Any], may: list[str], may_not: list[str]
) -> None:
    assert (await client.post(CHAT, json=text_body(tools=TOOLS, **fields))).status_code == 200
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert [text for text in may if not fits(grammar, text)] == []
    assert [text for text in may_not if fits(grammar, text)] == []


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("other mode", {"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ("other kind", {"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "look"}}}, "tool_choice.type"),
    ("nobody", {"tools": TOOLS, "tool_choice": named("run")}, "tool_choice"),
    ("nobody allowed", {"tools": TOOLS, "tool_choice": allowed("look", "run")}, "tool_choice"),
    ("no one allowed", {"tools": TOOLS, "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
    (
        "other mode of choice",
        {"tools": TOOLS, "tool_choice": allowed("look", mode="none")},
        "tool_choice.allowed_tools.mode",
    ),
    ("no tools", {"tool_choice": "required"}, "tool_choice"),
    ("none of no tools", {"tools": [], "tool_choice": named("look")}, "tool_choice"),
    ("twice", {"tools": [*TOOLS, function("look")]}, "tools[2].function.name"),
    ("custom tool", {"tools": [{"type": "custom", "custom": {"name": "look"}}]}, "tools[0].type"),
    ("bad name", {"tools": [function("look around")]}, "tools[0].function.name"),
    ("long name", {"tools": [function("a" * 129)]}, "tools[0].function.name"),
    ("no object", {"tools": [function("look", {"type": "string"})]}, "tools[0].function.parameters"),
    ("parameters are a list", {"tools": [function("look", [1])]}, "tools[0].function.parameters"),
    ("129", {"tools": [function(f"look{place}") for place in range(129)]}, "tools"),
    ("min_tokens", {"tools": TOOLS, "min_tokens": 5}, "min_tokens"),
    ("ignore_eos", {"tools": TOOLS, "ignore_eos": True}, "ignore_eos"),
]


@pytest.mark.parametrize(("fields", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refusals(client: httpx.AsyncClient, engine: ScriptedEngine, fields: dict[str, Any], param: str) -> None:
    reply = await client.post(CHAT, json=text_body(**fields))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert engine.requests == []


async def test_tools_that_do_not_fit_into_the_prompt_are_refused_in_the_sentence_that_clients_look_for(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    for size in (3_000, 6_000):
        tools = [function(f"t{place}", PLACE, description="d" * size) for place in range(25)]
        error = (await client.post(CHAT, json=text_body(tools=tools))).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length" in error["message"]
    assert engine.requests == []


async def test_many_tools_that_fit_are_taken(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    tools = [function(f"t{place}") for place in range(12)]
    assert (await client.post(CHAT, json=text_body(tools=tools))).status_code == 200
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert fits(grammar, '{"name": "t11", "arguments": {}}')


# What the model is told


async def test_the_functions_are_described_behind_the_system_text(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    body = text_body(tools=TOOLS)
    body["messages"].insert(0, {"role": "system", "content": "Be brief."})
    await client.post(CHAT, json=body)
    system, _, rest = prompt_of(engine).partition(" USER:")
    assert rest == " Hello. ASSISTANT:"
    beginning, introduction, look, wait = system.replace("\n\n", "\n").split("\n")
    assert beginning == "Be brief."
    assert "functions" in introduction
    assert json.loads(look) == {"name": "look", "description": "Looks at a place.", "parameters": PLACE}
    assert json.loads(wait)["name"] == "wait"


@pytest.mark.parametrize("fields", [{"tools": TOOLS, "tool_choice": "none"}, {"tools": []}, {"tools": None}])
async def test_where_nothing_may_be_called_nothing_is_said_of_it(
    client: httpx.AsyncClient, engine: ScriptedEngine, fields: dict[str, Any]
) -> None:
    await client.post(CHAT, json=text_body(**fields))
    await client.post(CHAT, json=text_body())
    with_fields, plain = engine.requests
    assert (with_fields.token_ids, with_fields.sampling) == (plain.token_ids, plain.sampling)


async def test_only_the_functions_that_may_be_called_are_described(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await client.post(CHAT, json=text_body(tools=TOOLS, tool_choice=allowed("wait")))
    assert '"wait"' in prompt_of(engine)
    assert '"look"' not in prompt_of(engine)


async def test_calls_and_their_results_are_told_in_order(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    body = text_body("Where?")
    made = [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}},
        {"id": "b", "type": "function", "function": {"name": "wait", "arguments": "{}"}},
    ]
    body["messages"] += [
        {"role": "assistant", "content": "Let me see.", "tool_calls": made},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "done"}]},
        {"role": "tool", "tool_call_id": "a", "content": "a door"},
        {"role": "user", "content": "And?"},
    ]
    await client.post(CHAT, json=body)
    prompt = prompt_of(engine)
    shown = (
        'USER: Where? ASSISTANT: Let me see.\n{"name": "look", "arguments": {"at": "x"}}\n'
        '{"name": "wait", "arguments": {}}</s> USER: wait returned: done\nlook returned: a door\nAnd? ASSISTANT:'
    )
    assert shown in prompt


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("choice", "said", "reason"),
    [
        (named("look"), LOOK, "stop"),
        ("required", LOOK, "tool_calls"),
        ("auto", LOOK, "tool_calls"),
        (allowed("look", mode="required"), LOOK, "tool_calls"),
        (named("look"), LOOK[:40], "length"),
    ],
    ids=["named", "required", "auto", "allowed", "named, cut"],
)
async def test_a_named_function_ends_with_stop_as_in_openais_api(
    client: httpx.AsyncClient, engine: ScriptedEngine, choice: Any, said: str, reason: str, stream: bool
) -> None:
    engine.say(*cut(said, 9))
    reply = await client.post(CHAT, json=text_body(tools=TOOLS, tool_choice=choice, stream=stream))
    if stream:
        _, calls, found = joined(chunks(reply.content))
        assert (len(calls), found) == (1, reason)
        return
    (made,) = reply.json()["choices"]
    assert (len(made["message"]["tool_calls"]), made["finish_reason"]) == (1, reason)


async def test_an_answer_may_not_end_inside_a_call_for_a_stop_text(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    """Arguments parse unless finish_reason is length: a stop text that lies within them cuts them."""
    engine.say(LOOK[:40])
    (choice,) = (await client.post(CHAT, json=text_body(tools=TOOLS, stop=["door"]))).json()["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert choice["finish_reason"] != "tool_calls" or all(json.loads(call["function"]["arguments"]) for call in calls)
