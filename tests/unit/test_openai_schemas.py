"""The judges of ``tests/support/openai_schemas.py``: they take what is OpenAI's, and refuse what is nearly so."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import httpx
import pytest

from tests.support.openai_examples import (
    CHAT_REPLY,
    COMPLETION,
    CUT,
    ERROR,
    EVENTS,
    FAILED,
    LEGACY_LOGPROBS,
    MODEL,
    RESPONSE,
    USAGE,
    WRONG,
)
from tests.support.openai_schemas import (
    SyncValidatingTransport,
    ValidatingTransport,
    schemas,
    validate_error,
    validate_event_stream,
    validate_reply,
    validator,
)

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

ABSENT = object()


def changed(body: Any, place: str, value: object) -> Any:
    """A copy with another value at ``a.0.b``."""
    body = deepcopy(body)
    *parents, last = [int(name) if name.isdecimal() else name for name in place.split(".")]
    holder = body
    for name in parents:
        holder = holder[name]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    return body


def test_schemas_are_schemas_with_closed_objects() -> None:
    def objects(part: Any) -> Any:
        if isinstance(part, dict):
            yield from [part] if "properties" in part and "type" in part else []
            part = list(part.values())
        for inner in part if isinstance(part, list) else []:
            yield from objects(inner)

    for name, schema in schemas().items():
        validator(name).check_schema(schema)
        for found in objects(schema):
            assert found["additionalProperties"] is False, (name, found)
            assert set(found.get("required", [])) <= set(found["properties"]), (name, found)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, CHAT_REPLY),
        (CHAT, changed(CHAT_REPLY, "choices.0.logprobs", None)),
        (COMPLETIONS, COMPLETION),
        (COMPLETIONS, changed(COMPLETION, "choices.0.logprobs", LEGACY_LOGPROBS)),
        (RESPONSES, RESPONSE),
        ("/v1/models", {"object": "list", "data": [MODEL, changed(MODEL, "parent", "base")]}),
        ("/v1/models/owner/m", MODEL),
    ],
)
def test_right_replies(path: str, body: object) -> None:
    validate_reply(path, body)


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        (CHAT, changed(CHAT_REPLY, "choices.0.message.refusal", ABSENT), "'refusal' is a required property"),
        (CHAT, changed(CHAT_REPLY, "choices.0.logprobs", ABSENT), "'logprobs' is a required property"),
        (CHAT, changed(CHAT_REPLY, "choices.0.finish_reason", "abort"), "'abort' is not one of"),
        (CHAT, changed(CHAT_REPLY, "choices.0.stop_reason", None), "'stop_reason' was unexpected"),
        (CHAT, changed(CHAT_REPLY, "choices.0.message.tool_calls", None), "None is not of type 'array'"),
        (CHAT, changed(CHAT_REPLY, "usage.prompt_tokens_details", None), "None is not of type 'object'"),
        (CHAT, changed(CHAT_REPLY, "system_fingerprint", None), "None is not of type 'string'"),
        (CHAT, changed(CHAT_REPLY, "created", 1.0), "1.0 is not of type 'integer'"),
        (COMPLETIONS, changed(COMPLETION, "choices.0.finish_reason", None), "None is not one of"),
        (COMPLETIONS, changed(COMPLETION, "usage", None), "None is not of type 'object'"),
        (RESPONSES, changed(RESPONSE, "instructions", ABSENT), "'instructions' is a required property"),
        (RESPONSES, changed(RESPONSE, "output.0.content.0.logprobs", ABSENT), "'logprobs' is a required property"),
        (RESPONSES, changed(RESPONSE, "output_text", "é"), "'output_text' was unexpected"),
        ("/v1/models", [MODEL], "is not of type 'object'"),
        ("/v1/models/m", changed(MODEL, "family", "m"), "'family' was unexpected"),
        ("/v1/embeddings", {}, "no schema"),
    ],
)
def test_wrong_replies(path: str, body: object, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        validate_reply(path, body)


def test_errors() -> None:
    validate_error(ERROR)
    for place, value in [("error.code", 400), ("error.param", ABSENT), ("error.type", None), ("detail", "No.")]:
        with pytest.raises(AssertionError):
            validate_error(changed(ERROR, place, value))


def chunk(choices: list[Any], **fields: object) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | fields


def delta(content: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": finish_reason}


def stream(*parts: object) -> bytes:
    data = [part if isinstance(part, str) else json.dumps(part) for part in parts]
    return "".join(f"data: {line}\n\n" for line in data).encode()


FIRST, LAST = chunk([delta("é")]), chunk([delta("", "stop")])
FIRST_COUNTED, LAST_COUNTED = chunk([delta("é")], usage=None), chunk([delta("", "stop")], usage=None)
COUNTS = chunk([], usage=USAGE)
TEXT_CHUNK = changed(changed(COMPLETION, "choices.0.finish_reason", None), "usage", None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, stream(FIRST, LAST, "[DONE]")),
        (CHAT, b": ping\n\n" + stream(FIRST_COUNTED, LAST_COUNTED, COUNTS, "[DONE]")),
        (CHAT, stream(FIRST, ERROR)),
        (CHAT, stream(ERROR)),
        (
            COMPLETIONS,
            stream(TEXT_CHUNK, changed(COMPLETION, "usage", None), changed(COMPLETION, "choices", []), "[DONE]"),
        ),
    ],
)
def test_right_streams(path: str, body: bytes) -> None:
    validate_event_stream(path, body)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (stream(FIRST, LAST), r"neither \[DONE\] nor an error"),
        (stream("[DONE]"), "no chunk"),
        (stream(FIRST, ERROR, "[DONE]"), "'error' was unexpected"),
        (stream(FIRST, LAST, "[DONE]", "[DONE]"), "events after"),
        (stream(FIRST, LAST | {"id": "2"}, "[DONE]"), "id differs"),
        (stream(FIRST, LAST | {"created": 2}, "[DONE]"), "created differs"),
        (stream(FIRST, "[DONE]"), "no finish_reason"),
        (stream(LAST, FIRST, "[DONE]"), "goes on"),
        (stream(FIRST, LAST, COUNTS, "[DONE]"), "usage is in some chunks only"),
        (stream(FIRST_COUNTED, LAST_COUNTED, "[DONE]"), "usage is null in every chunk"),
        (stream(FIRST_COUNTED, LAST_COUNTED | {"usage": USAGE}, "[DONE]"), "usage beside choices"),
        (stream(FIRST_COUNTED, COUNTS, LAST_COUNTED, "[DONE]"), "usage before"),
        (stream(changed(FIRST, "choices.0.finish_reason", ABSENT), LAST, "[DONE]"), "required property"),
        (stream(changed(FIRST, "choices.0.delta.reasoning", ""), LAST, "[DONE]"), "unexpected"),
        (stream(json.dumps(FIRST).replace("null", "NaN"), LAST, "[DONE]"), "NaN is not JSON"),
        (b"event: chunk\n" + stream(FIRST, LAST, "[DONE]"), "an event with a name"),
        (stream(FIRST, LAST, "[DONE]")[:-1], "has no end"),
    ],
)
def test_wrong_streams(body: bytes, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        validate_event_stream(CHAT, body)


def response_stream(events: list[dict[str, Any]], number: Callable[[int], int] = int) -> bytes:
    numbered = [event | {"sequence_number": number(index)} for index, event in enumerate(events)]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in numbered).encode()


@pytest.mark.parametrize("ending", [EVENTS[-1:], [CUT], [FAILED], [WRONG], [WRONG, FAILED]])
def test_right_response_streams(ending: list[dict[str, Any]]) -> None:
    validate_event_stream(RESPONSES, response_stream(EVENTS[:-1] + ending))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (response_stream(EVENTS, lambda index: index + index // 4), "5 is not 4"),
        (response_stream(EVENTS, lambda index: index + 1), "1 is not 0"),
        (response_stream(EVENTS[1:]), "begins with"),
        (response_stream(EVENTS[:-1]), "ends with"),
        (response_stream([*EVENTS, CUT]), "after the last one"),
        (response_stream([EVENTS[0], {"type": "response.output_text.finished"}, CUT]), "no event of the API"),
        (response_stream([EVENTS[0], EVENTS[4] | {"logprobs": None}, CUT]), "is not of type 'array'"),
        (response_stream([EVENTS[0], CUT | {"response": RESPONSE}]), "of a response that is completed"),
        (response_stream([EVENTS[0], changed(CUT, "response.id", "resp_2")]), "id differs"),
        (response_stream(EVENTS).replace(b"event: response.completed", b"event: done"), "named done"),
        (response_stream(EVENTS) + stream("[DONE]"), "JSON|Expecting"),
    ],
)
def test_wrong_response_streams(body: bytes, complaint: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=complaint):
        validate_event_stream(RESPONSES, body)


def answer(request: httpx.Request) -> httpx.Response:
    """The status in the query; a wrong body where ``wrong`` is in it."""
    status = int(request.url.params["status"])
    body = ERROR if status >= 400 else {"object": "list", "data": []}
    return httpx.Response(status, json={"wrong": True} if "wrong" in request.url.params else body)


JUDGED = pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("/v1/models?status=200", False),
        ("/v1/models?status=200&wrong=1", True),
        ("/health?status=200&wrong=1", False),
        ("/health?status=503", False),
        ("/health?status=503&wrong=1", True),
    ],
)


@JUDGED
def test_answers_to_a_client_that_does_not_wait(address: str, refused: bool) -> None:
    transport = SyncValidatingTransport(httpx.MockTransport(answer))
    complaint = pytest.raises(AssertionError) if refused else nullcontext()
    with httpx.Client(transport=transport, base_url="http://test") as client, complaint:
        client.get(address)


@JUDGED
async def test_answers_to_a_client_that_waits(address: str, refused: bool) -> None:
    transport = ValidatingTransport(httpx.MockTransport(answer))
    complaint = pytest.raises(AssertionError) if refused else nullcontext()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with complaint:
            await client.get(address)


async def test_a_stream_is_passed_on_as_it_comes_and_judged_at_its_end() -> None:
    sent = []

    async def parts() -> AsyncIterator[bytes]:
        for part in (stream(FIRST), stream(LAST)):
            sent.append(part)
            yield part

    headers = {"content-type": "text/event-stream; charset=utf-8"}
    server = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=parts()))
    async with httpx.AsyncClient(transport=ValidatingTransport(server), base_url="http://test") as client:
        async with client.stream("POST", CHAT) as response:
            reading = response.aiter_raw()
            assert await anext(reading) == stream(FIRST)
            assert sent == [stream(FIRST)]
            assert await anext(reading) == stream(LAST)
            with pytest.raises(AssertionError):
                await anext(reading)
        async with client.stream("POST", CHAT) as response:
            assert await anext(response.aiter_raw()) == stream(FIRST)
