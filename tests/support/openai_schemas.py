"""Judges answers by the schemas of OpenAI's published OpenAPI document, so that each one in the suite is held to them.

``tests/openai_schemas`` has the schemas as JSON Schema: only the structure, of what a server of text, images and
function calls can send. They come from the document's version 2.3.0 of spring 2026, as the repository
64bit/async-openai keeps it (openapi.documented.yml at 2c8776b). Where openai-python 3.52.0, generated from a later one,
has more, its fields were added; the ``$comment`` of each file names them. Two things are stricter than the document:
every object is closed, so that a field which is not the API's is an error, and an integer is not written as a float.
"""

import json
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from llava_api.server.middleware.path import single_slashes
from tests.support import anthropic_shapes, ollama_shapes

FOLDER = Path(__file__).parents[1] / "openai_schemas"


def closed(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": [*fields], "properties": fields}


SCORED = {
    "type": "array",
    "items": closed(choice={"type": "string"}, logprob={"type": "number"}, probability={"type": "number"}),
}
PROMPT_LOGPROB = closed(logprob={"type": "number"}, rank={"type": "integer"}, decoded_token={"type": "string"})
PROMPT_LOGPROBS = {
    "type": "array",
    "items": {"type": ["object", "null"], "additionalProperties": PROMPT_LOGPROB},
}
"""As vLLM's server sends them."""
TOKEN_IDS = {"type": "array", "items": {"type": "integer"}}
ANSWERS = ("chat_completion.json", "chat_completion_chunk.json", "completion.json", "completion_chunk.json")
KINDS = (None, None, "choice", "choice")
EXTENSIONS = (
    # file, definition in it, field, schema: what this server sends beyond the API
    ("chat_completion.json", None, "prompt_logprobs", PROMPT_LOGPROBS),
    ("completion.json", "choice", "prompt_logprobs", PROMPT_LOGPROBS),
    ("chat_completion.json", "choice", "choice_logprobs", SCORED),
    ("chat_completion_chunk.json", "choice", "choice_logprobs", SCORED),
    ("completion.json", "choice", "choice_logprobs", SCORED),
    ("completion_chunk.json", "choice", "choice_logprobs", SCORED),
    *((name, "choice", "token_ids", TOKEN_IDS) for name in ANSWERS),
    *((name, kind, "prompt_token_ids", TOKEN_IDS) for name, kind in zip(ANSWERS, KINDS, strict=True)),
    ("model_list.json", "model", "max_model_len", {"type": "integer"}),
    ("model_list.json", "model", "parent", {"type": ["string", "null"]}),
    ("model_list.json", "model", "root", {"type": "string"}),
    ("model_list.json", "model", "context_length", {"type": "integer"}),
    ("model_list.json", "model", "architecture", {"type": "object"}),
    ("model_list.json", "model", "permission", {"type": "array"}),
)

REPLIES = {
    "/v1/chat/completions": "chat_completion.json",
    "/v1/completions": "completion.json",
    "/v1/responses": "response.json",
    "/v1/models": "model_list.json",
    "/v1/files": "file.json",
    "/v1/batches": "batch.json",
}
CHUNKS = {"/v1/chat/completions": "chat_completion_chunk.json", "/v1/completions": "completion_chunk.json"}
LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed", "error")

Strict = extend(
    Draft202012Validator,
    # JSON Schema takes 1.0 for an integer, many languages' readers do not.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


@cache
def schemas() -> dict[str, Any]:
    found = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    for schema in found.values():
        # It would bring back the validator that Strict was made from.
        del schema["$schema"]
    for file, definition, field, schema in EXTENSIONS:
        place = found[file] if definition is None else found[file]["$defs"][definition]
        place["properties"][field] = schema
    return found


@cache
def validator(reference: str) -> Strict:
    resources = [(name, DRAFT202012.create_resource(schema)) for name, schema in schemas().items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return Strict({"$ref": reference}, registry=registry)


def validate(reference: str, body: object) -> None:
    """``reference`` is a file of the folder, with ``#/$defs/name`` for a part of it."""
    wrong = best_match(validator(reference).iter_errors(body))
    assert wrong is None, f"{reference}: {wrong.json_path}: {wrong.message}"


def reply_schema(path: str) -> str | None:
    if path.startswith("/v1/files/"):
        return None if path.endswith("/content") else "file.json#/$defs/file"
    if path.startswith("/v1/batches/"):
        return "batch.json#/$defs/batch"
    return "model_list.json#/$defs/model" if path.startswith("/v1/models/") else REPLIES.get(path)


def validate_reply(path: str, body: object) -> None:
    """``body``, parsed, is the answer of this path when it went well and was not streamed."""
    reference = reply_schema(path)
    assert reference is not None, f"no schema for {path}"
    validate(reference, body)


def validate_error(body: object) -> None:
    validate("error.json", body)


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def check_error(path: str, body: object) -> None:
    """Each path has errors in the shape of the API that it belongs to."""
    if is_anthropic(path):
        anthropic_shapes.check_error(body)
    elif path.startswith("/api/"):
        ollama_shapes.check_error(body)
    else:
        validate_error(body)


def validate_event_stream(path: str, body: bytes) -> None:
    """``body`` is a whole answer in server-sent events."""
    blocks = list(event_blocks(body))
    assert blocks, "a stream without events"
    if path == "/v1/responses":
        check_response_events(blocks)
    else:
        assert {name for name, _ in blocks} == {None}, "an event with a name"
        check_chunks(CHUNKS[path], [data for _, data in blocks])


def event_blocks(body: bytes) -> Iterator[tuple[str | None, str]]:
    """Name and data of each event; comments are passed over, other lines are an error."""
    assert body.endswith(b"\n\n"), "the last event has no end"
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
        assert len(lines) == 1, f"not one line of data: {block}"
        assert lines[0].startswith("data: "), f"not one line of data: {block}"
        yield name, lines[0].removeprefix("data: ")


def parse(text: str | bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def check_chunks(reference: str, data: list[str]) -> None:
    """Chunks and ``[DONE]``; or as many chunks as there were before an error, and the error."""
    *data, last = data
    assert "[DONE]" not in data, "events after [DONE]"
    chunks = [parse(item) for item in data]
    done = last == "[DONE]"
    if not done:
        assert "error" in parse(last), "the stream ends with neither [DONE] nor an error"
        validate_error(parse(last))
    for chunk in chunks:
        validate(reference, chunk)
    assert chunks or not done, "no chunk before [DONE]"
    for field in ("id", "created", "model"):
        assert len({chunk[field] for chunk in chunks}) <= 1, f"{field} differs between chunks"
    check_usage(chunks, done)
    check_finish_reasons(chunks, done)


def check_usage(chunks: list[dict[str, Any]], done: bool) -> None:
    """Where usage was asked for, each chunk has it: null, and the counts in one more chunk without choices."""
    counted = [chunk for chunk in chunks if chunk.get("usage") is not None]
    if len(counted) == len(chunks) > 1:
        # vLLM's continuous_usage_stats, which OpenAI's API does not have.
        return
    assert counted in ([], chunks[-1:]), "usage before the last chunk"
    assert counted == [chunk for chunk in chunks if not chunk["choices"]], "usage beside choices, or neither"
    asked = {"usage" in chunk for chunk in chunks}
    assert len(asked) <= 1, "usage is in some chunks only"
    assert counted or not done or asked == {False}, "usage is null in every chunk"


def check_finish_reasons(chunks: list[dict[str, Any]], done: bool) -> None:
    reasons: dict[int, list[str | None]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            reasons.setdefault(choice["index"], []).append(choice["finish_reason"])
    for index, found in reasons.items():
        assert set(found[:-1]) <= {None}, f"choice {index} goes on after its finish_reason"
        assert not done or found[-1] is not None, f"choice {index} has no finish_reason"


def check_response_events(blocks: list[tuple[str | None, str]]) -> None:
    events = [parse(data) for _, data in blocks]
    for number, (event, (name, _)) in enumerate(zip(events, blocks, strict=True)):
        assert event["type"] == name, f"{event['type']} named {name}"
        assert name in schemas()["response_events.json"]["$defs"], f"no event of the API: {name}"
        validate(f"response_events.json#/$defs/{name}", event)
        assert event["sequence_number"] == number, f"sequence_number {event['sequence_number']} is not {number}"
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created", f"a stream that begins with {kinds[0]}"
    assert kinds[-1] in LAST_EVENTS, f"a stream that ends with {kinds[-1]}"
    # OpenAI's API says what went wrong in an event of its own before it says that the response failed.
    before = kinds[:-2] if kinds[-2:] == ["error", "response.failed"] else kinds[:-1]
    assert not set(before) & set(LAST_EVENTS), f"events after the last one: {kinds}"
    stated = [(event["type"], event["response"]) for event in events if "response" in event]
    assert len({response["id"] for _, response in stated}) == 1, "id differs between events"
    for kind, response in stated:
        status = "in_progress" if kind == "response.created" else kind.removeprefix("response.")
        assert response["status"] == status, f"{kind} of a response that is {response['status']}"


def check_answer(request: httpx.Request, response: httpx.Response, body: bytes) -> None:
    """The body as it was on the wire. Of answers that went well, only those of the API's own paths are judged."""
    path = single_slashes(request.url.path)
    if request.method not in ("GET", "POST"):
        return
    content = httpx.Response(response.status_code, headers=response.headers, content=body).content
    if response.status_code >= 400:
        check_error(path, parse(content))
    elif is_anthropic(path) and response.status_code == 200:
        anthropic_shapes.check_answer(path, response.headers["content-type"].partition(";")[0], content)
    elif "anthropic-version" in request.headers:
        # Their list of models is at an address of OpenAI's API.
        return
    elif response.status_code == 200 and reply_schema(path) is not None:
        kind = response.headers["content-type"].partition(";")[0]
        if kind == "text/event-stream":
            validate_event_stream(path, content)
        else:
            assert kind == "application/json", f"an answer of {kind}"
            validate_reply(path, parse(content))


class CheckedStream(httpx.AsyncByteStream, httpx.SyncByteStream):
    """Passes the body on as it comes and judges it when it has been read to its end; one closed early is not judged."""

    def __init__(self, request: httpx.Request, response: httpx.Response) -> None:
        self.request, self.response, self.stream = request, response, response.stream

    def answer(self) -> httpx.Response:
        extensions = self.response.extensions
        return httpx.Response(
            self.response.status_code, headers=self.response.headers, stream=self, extensions=extensions
        )

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = bytearray()
        async for part in self.stream:
            body += part
            yield part
        check_answer(self.request, self.response, bytes(body))

    def __iter__(self) -> Iterator[bytes]:
        body = bytearray()
        for part in self.stream:
            body += part
            yield part
        check_answer(self.request, self.response, bytes(body))

    async def aclose(self) -> None:
        await self.stream.aclose()

    def close(self) -> None:
        self.stream.close()


class ValidatingTransport(httpx.AsyncBaseTransport):
    """``inner``, but a reader of an answer that is not the API's gets an AssertionError."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        return CheckedStream(request, response).answer()

    async def aclose(self) -> None:
        await self.inner.aclose()


class SyncValidatingTransport(httpx.BaseTransport):
    """A validating transport for synchronous clients: ``openai.OpenAI(http_client=httpx.Client(transport=...))``."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self.inner.handle_request(request)
        return CheckedStream(request, response).answer()

    def close(self) -> None:
        self.inner.close()
