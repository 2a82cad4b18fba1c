"""Fields that are refused with a reason or ignored, and what --strict-fields refuses besides."""

import re
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams

from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.completions import CompletionRequest
from llava_api.protocol.refused import DONE_ANYWAY, changes_nothing
from llava_api.protocol.responses import ResponseRequest
from tests.api.test_chat import CHAT, prompt_of, text_body
from tests.support.endpoints import EXAMPLE_BODIES
from tests.support.scripted_engine import ScriptedEngine

COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"
REQUESTS = {CHAT: ChatCompletionRequest, COMPLETIONS: CompletionRequest, RESPONSES: ResponseRequest}
HUGE = "x" * 200_000


@pytest.mark.parametrize(
    ("params", "model"),
    [(ChatParams, ChatCompletionRequest), (CompletionParams, CompletionRequest), (ResponseParams, ResponseRequest)],
)
def test_every_field_of_the_openai_client_is_known(params: type[Any], model: type[Any]) -> None:
    """Fails if a new client has a field that is not accepted, ignored or refused on purpose."""
    known = set(model.model_fields) | set(model.refused) | set(model.ignored)
    assert set(params.__annotations__) - known == set()


def test_a_field_has_one_rule() -> None:
    for model in REQUESTS.values():
        groups = [set(model.model_fields), set(model.refused), set(model.ignored)]
        assert len(set.union(*groups)) == sum(map(len, groups))


@pytest.mark.parametrize("address", REQUESTS)
async def test_a_refused_field_is_named_with_the_reason(
    client: httpx.AsyncClient, engine: ScriptedEngine, address: str
) -> None:
    for name, sentence in REQUESTS[address].refused.items():
        for value in (True, 1, "x", ["x"], {"x": "y"}):
            if changes_nothing(name, value):
                continue
            reply = await client.post(address, json={**EXAMPLE_BODIES[address], name: value})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")
            assert error["message"] == sentence
    assert engine.requests == []


@pytest.mark.parametrize("address", REQUESTS)
@pytest.mark.parametrize("value", [None, False, [], {}, ""], ids=repr)
async def test_refused_fields_may_be_empty(
    client: httpx.AsyncClient, engine: ScriptedEngine, address: str, value: Any
) -> None:
    refused = dict.fromkeys(REQUESTS[address].refused, value)
    reply = await client.post(address, json=EXAMPLE_BODIES[address] | refused)
    assert reply.status_code == 200


@pytest.mark.parametrize("address", REQUESTS)
async def test_fields_without_effect_may_ask_for_what_is_done_anyway(client: httpx.AsyncClient, address: str) -> None:
    for name in DONE_ANYWAY.keys() & (REQUESTS[address].refused.keys() | REQUESTS[address].ignored.keys()):
        for value in DONE_ANYWAY[name]:
            reply = await client.post(address, json={**EXAMPLE_BODIES[address], name: value})
            assert (reply.status_code, reply.headers.get("x-llava-ignored")) == (200, None)


@pytest.mark.parametrize("address", REQUESTS)
async def test_an_ignored_field_is_named_in_the_header(client: httpx.AsyncClient, address: str) -> None:
    for name in REQUESTS[address].ignored:
        reply = await client.post(address, json={**EXAMPLE_BODIES[address], name: "x"})
        assert (reply.status_code, reply.headers["x-llava-ignored"]) == (200, name)


def at_message(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello.", **more}]}


FUNCTION = {"name": "look", "parameters": {"type": "object"}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    ("temprature", text_body(temprature=1)),
    ("messages[0].colour", at_message(colour=1)),
    ("stream_options.usage", text_body(stream=True, stream_options={"usage": True})),
    ("tools[0].names", text_body(tools=[{"type": "function", "function": FUNCTION, "names": "x"}])),
    ("tools[0].function.names", text_body(tools=[{"type": "function", "function": {**FUNCTION, "names": "x"}}])),
    (
        "tool_choice.function.names",
        text_body(
            tools=[{"type": "function", "function": FUNCTION}],
            tool_choice={"type": "function", "function": {"name": "look", "names": 1}},
        ),
    ),
    ("response_format.schemas", text_body(response_format={"type": "json_object", "schemas": {}})),
    (
        "response_format.json_schema.schemas",
        text_body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schemas": {}}}),
    ),
    (
        "messages[1].tool_calls[0].function.args",
        {
            "model": "tiny",
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [{**CALL, "function": {**CALL["function"], "args": 1}}]},
                {"role": "user", "content": "b"},
            ],
        },
    ),
]


@pytest.mark.parametrize(("param", "body"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
async def test_an_unknown_field_is_ignored_at_every_depth(
    client: httpx.AsyncClient, param: str, body: dict[str, Any]
) -> None:
    reply = await client.post(CHAT, json=body)
    assert (reply.status_code, reply.headers["x-llava-ignored"]) == (200, re.sub(r"\[\d+\]", "", param))


class TestStrictFields:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"strict_fields": True}

    @pytest.mark.parametrize(("param", "body"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
    async def test_an_unknown_field_is_refused_by_its_path(
        self, client: httpx.AsyncClient, param: str, body: dict[str, Any]
    ) -> None:
        reply = await client.post(CHAT, json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, "unknown_parameter")
        assert error["message"] == f"Unrecognized request argument supplied: {param}"

    @pytest.mark.parametrize("address", REQUESTS)
    async def test_a_field_without_effect_is_refused_with_the_reason(
        self, client: httpx.AsyncClient, address: str
    ) -> None:
        for name, sentence in REQUESTS[address].ignored.items():
            error = (await client.post(address, json={**EXAMPLE_BODIES[address], name: "x"})).json()["error"]
            assert (error["param"], error["code"], error["message"]) == (name, "unsupported_parameter", sentence)

    @pytest.mark.parametrize(("field", "value"), [("temperature", "0.7"), ("max_tokens", 24.0), ("stream", "true")])
    async def test_a_value_of_another_type_is_refused(
        self, client: httpx.AsyncClient, field: str, value: object
    ) -> None:
        reply = await client.post(CHAT, json=text_body(**{field: value}))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


MISSING: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"model": "tiny"}),
    ("messages[0].content", {"model": "tiny", "messages": [{"role": "user"}]}),
    ("tools[0].function", text_body(tools=[{"type": "function"}])),
    ("tools[0].function.name", text_body(tools=[{"type": "function", "function": {}}])),
    ("tool_choice.function", text_body(tool_choice={"type": "function"})),
    ("response_format.json_schema", text_body(response_format={"type": "json_schema"})),
]


@pytest.mark.parametrize(("param", "body"), MISSING, ids=[row[0] for row in MISSING])
async def test_a_missing_field_is_named_by_its_path(
    client: httpx.AsyncClient, param: str, body: dict[str, Any]
) -> None:
    reply = await client.post(CHAT, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, "missing_required_parameter")


LONG_NAMES: list[tuple[str, dict[str, Any]]] = [
    ("unknown field with an image", text_body(**{HUGE: "data:image/png;base64,"})),
    ("logit_bias", text_body(logit_bias={HUGE: "a"})),
    ("tools", text_body(tools=[{"type": "function", "function": {"name": HUGE}}])),
    ("model", {**text_body(), "model": HUGE}),
    ("role", {"model": "tiny", "messages": [{"role": HUGE, "content": ""}]}),
    ("stop", text_body(stop=[HUGE])),
    ("tool_choice", text_body(tool_choice=HUGE)),
    (
        "schema",
        text_body(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"minLength": HUGE[:50_000]}},
            }
        ),
    ),
]


@pytest.mark.parametrize("body", [row[1] for row in LONG_NAMES], ids=[row[0] for row in LONG_NAMES])
async def test_a_refusal_does_not_contain_long_values(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    reply = await client.post(CHAT, json=body)
    assert reply.status_code in (400, 404)
    assert len(reply.content) < 2000


@pytest.mark.parametrize("with_call", [False, True])
async def test_a_reply_can_be_sent_back_as_the_client_dumps_it(
    client: httpx.AsyncClient, engine: ScriptedEngine, with_call: bool
) -> None:
    body = text_body()
    if with_call:
        engine.say('{"name": "look", "arguments": {}}')
        body["tools"] = [{"type": "function", "function": FUNCTION}]
    reply = ChatCompletion.model_validate((await client.post(CHAT, json=body)).json())
    dumped = reply.choices[0].message.model_dump()
    # The client adds null for each field of its class that the server did not send.
    assert {"audio", "function_call", "annotations"} <= {name for name, value in dumped.items() if value is None}
    body["messages"] = [*body["messages"], dumped, {"role": "user", "content": "And now?"}]
    if with_call:
        body["messages"][-1:] = [{"role": "tool", "tool_call_id": dumped["tool_calls"][0]["id"], "content": "a door"}]
    again = await client.post(CHAT, json=body)
    assert again.status_code == 200
    shown = (
        'ASSISTANT: {"name": "look", "arguments": {}}</s> USER: look returned: a door'
        if with_call
        else ("ASSISTANT: A red circle.</s> USER: And now?")
    )
    assert shown in prompt_of(engine)


async def test_openais_own_reply_can_be_sent_back(client: httpx.AsyncClient) -> None:
    message = {"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "audio": None}
    body = text_body()
    body["messages"] += [message, {"role": "user", "content": "And now?"}]
    assert (await client.post(CHAT, json=body)).status_code == 200


async def test_an_answer_in_sound_is_refused(client: httpx.AsyncClient) -> None:
    body = text_body()
    body["messages"] += [
        {"role": "assistant", "content": "Hi.", "audio": {"id": "x"}},
        {"role": "user", "content": "b"},
    ]
    error = (await client.post(CHAT, json=body)).json()["error"]
    assert (error["param"], error["code"]) == ("messages[1].audio", "unsupported_parameter")
