"""The OpenAPI document, from the wire models themselves.

Written here rather than by FastAPI, whose generator reads handlers' parameters: ours take the raw request, so that a
body is read under a limit, parsed by orjson and refused in OpenAI's words.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llava_api import __version__
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.protocol.chat_reply import ChatCompletion, ChatCompletionChunk, ChunkWithUsage
from llava_api.protocol.completions import Completion, CompletionChunk, CompletionChunkWithUsage, CompletionRequest
from llava_api.protocol.error import ErrorReply
from llava_api.protocol.explain import Explanation
from llava_api.protocol.health import Health
from llava_api.protocol.models import ModelCard, ModelList
from llava_api.protocol.response_reply import (
    ArgumentsDelta,
    ArgumentsDone,
    DeletedResponse,
    ItemEvent,
    PartEvent,
    Response,
    ResponseEvent,
    TextDelta,
    TextDone,
)
from llava_api.protocol.responses import ResponseRequest
from llava_api.protocol.version import Version

Schema = dict[str, Any]
Model = type[BaseModel]

ENDS = ' At the end `data: [DONE]`; a failure after the first chunk is one event `data: {"error": {...}}` instead.'
REFUSALS = (400, 401, 403, 404, 405, 413, 429, 500, 503)
"""Of a request with a body: wrong, no key, a web page of elsewhere, another model or method, too large, too many,
broken, not ready or busy."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    path: str
    name: str
    summary: str
    reply: Model
    request: Model | None = None
    chunks: tuple[Model, ...] = ()
    """What the events of a stream hold; empty where nothing is streamed."""
    stream: str = ""
    """What a stream is."""
    done: bool = True
    """Whether a stream ends with ``[DONE]``."""
    statuses: tuple[int, ...] = REFUSALS
    """Of errors."""
    path_parameter: str | None = None


ENDPOINTS = (
    Endpoint(
        *("post", "/v1/chat/completions", "createChatCompletion", "Ask about texts and pictures"),
        ChatCompletion,
        ChatCompletionRequest,
        (ChatCompletionChunk, ChunkWithUsage, ErrorReply),
        "Server-Sent Events without names, each a chunk." + ENDS,
    ),
    Endpoint(
        *("post", "/v1/responses", "createResponse", "The same in the form of the Responses API"),
        Response,
        ResponseRequest,
        (ResponseEvent, ItemEvent, PartEvent, TextDelta, TextDone, ArgumentsDelta, ArgumentsDone),
        "Server-Sent Events with their type as their name; the last is response.completed, response.incomplete or "
        "response.failed.",
        done=False,
    ),
    Endpoint(
        *("get", "/v1/responses/{response_id}", "getResponse", "A response that was kept"),
        Response,
        statuses=(401, 403, 404, 405),
        path_parameter="response_id",
    ),
    Endpoint(
        *("delete", "/v1/responses/{response_id}", "deleteResponse", "Forget a response that was kept"),
        DeletedResponse,
        statuses=(401, 403, 404, 405),
        path_parameter="response_id",
    ),
    Endpoint(
        *("post", "/v1/completions", "createCompletion", "Continue a plain text"),
        Completion,
        CompletionRequest,
        (CompletionChunk, CompletionChunkWithUsage, ErrorReply),
        "Server-Sent Events without names, each a chunk." + ENDS,
    ),
    Endpoint(
        *("post", "/v1/explain", "explain", "What the model would be shown for a chat request"),
        Explanation,
        ChatCompletionRequest,
    ),
    Endpoint("get", "/v1/models", "listModels", "The models that are served", ModelList, statuses=(401, 403, 405)),
    Endpoint(
        *("get", "/v1/models/{model}", "retrieveModel", "One of them"),
        ModelCard,
        statuses=(401, 403, 404, 405),
        path_parameter="model",
    ),
    Endpoint("get", "/health/live", "live", "Whether the process runs", Health, statuses=(405,)),
    Endpoint("get", "/health/ready", "ready", "Whether it can answer", Health, statuses=(405, 503)),
    Endpoint("get", "/version", "version", "What the server runs", Version, statuses=(401, 403, 405)),
    Endpoint("get", "/health", "health", "The same as /health/ready", Health, statuses=(405, 503)),
)

EXAMPLES: dict[Model, Schema] = {
    ChatCompletionRequest: {"messages": [{"role": "user", "content": "What can you do?"}]},
    ResponseRequest: {"input": "What can you do?"},
    CompletionRequest: {"prompt": "USER: What can you do? ASSISTANT:", "max_tokens": 32},
}
REFERENCE = "#/components/schemas/"

DESCRIPTION = (
    "OpenAI's API for LLaVA-1.5 and LLaVA-1.6 (NeXT) checkpoints. Pictures go in as image_url parts: data: URLs, or "
    "http and https URLs. Every error has the one shape of ErrorReply; every answer carries x-request-id."
)


@cache
def openapi_document(model: str = "llava-tiny-1.5") -> Schema:
    """``model``: the served name, for examples."""
    requests: set[Any] = {(each.request, "validation") for each in ENDPOINTS if each.request is not None}
    replies: set[Any] = {(model, "serialization") for each in ENDPOINTS for model in (each.reply, *each.chunks)}
    replies.add((ErrorReply, "serialization"))
    wanted: list[Any] = sorted(requests | replies, key=lambda pair: pair[0].__name__)
    references, definitions = models_json_schema(wanted, ref_template=REFERENCE + "{model}")
    paths: dict[str, Schema] = {}
    for each in ENDPOINTS:
        paths.setdefault(each.path, {})[each.method] = operation(each, references, model)
    schemas = definitions["$defs"]
    # A reply may gain a field: only what callers send is closed.
    for name in schemas.keys() - reached([references[pair]["$ref"] for pair in requests], schemas):
        schemas[name].pop("additionalProperties", None)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llava-api", "version": __version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Where keys are set."}},
        },
        "security": [{"key": []}, {}],
    }


def reached(references: list[str], schemas: dict[str, Schema]) -> set[str]:
    """Names of all schemas that ``references`` lead to."""
    found: set[str] = set()
    while references:
        name = references.pop().removeprefix(REFERENCE)
        if name not in found:
            found.add(name)
            references += re.findall(rf'"\$ref": "({REFERENCE}\w+)"', json.dumps(schemas[name]))
    return found


def operation(endpoint: Endpoint, references: Any, model: str) -> Schema:
    """``references``: (model, mode) -> its place in the document."""
    reply: Schema = {"application/json": {"schema": references[endpoint.reply, "serialization"]}}
    if endpoint.chunks:
        reply["text/event-stream"] = {"schema": event_schema(endpoint, references)}
    responses: Schema = {"200": {"description": "OK", "content": reply}}
    for status in endpoint.statuses:
        content = {"application/json": {"schema": references[ErrorReply, "serialization"]}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    made: Schema = {"operationId": endpoint.name, "summary": endpoint.summary, "responses": responses}
    if endpoint.path_parameter is not None:
        text = {"type": "string", "minLength": 1}
        made["parameters"] = [{"name": endpoint.path_parameter, "in": "path", "required": True, "schema": text}]
    if endpoint.request is not None:
        example = {"model": model, **EXAMPLES[endpoint.request]}
        content = {"application/json": {"schema": references[endpoint.request, "validation"], "example": example}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def event_schema(endpoint: Endpoint, references: Any) -> Schema:
    """Of one event of a stream: OpenAPI 3.1 has no word for the whole of it."""
    chunks = [references[model, "serialization"] for model in endpoint.chunks]
    kinds: list[Schema] = [{"contentMediaType": "application/json", "contentSchema": {"anyOf": chunks}}]
    if endpoint.done:
        kinds.append({"const": "[DONE]"})
    return {
        "type": "object",
        "description": endpoint.stream,
        "properties": {"event": {"type": "string"}, "data": {"type": "string", "anyOf": kinds}},
        "required": ["data"],
    }
