"""The OpenAPI document, made from the endpoints' declarations and the wire models.

FastAPI's own generator is not used because it reads handlers' parameters: ours take the raw request, so that the body
is read up to a limit, parsed by orjson and rejected in OpenAI's words.
"""

import re
from collections.abc import Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from llava_api import __version__
from llava_api.protocol.wire import NamedEvent
from llava_api.server.dialects import dialect_of
from llava_api.server.endpoint import Endpoint
from llava_api.server.sse import EventStream

Schema = dict[str, Any]

CHUNKS = (
    "Server-Sent Events without names, each a chunk. The last is `data: [DONE]`; after a failure it is one event "
    '`data: {"error": {...}}` instead.'
)
NAMED_EVENTS = "Server-Sent Events named by their type; the last is {}."
LINES = 'Lines of JSON. The last has `"done": true`; after a failure it is `{"error": "..."}` instead.'
DESCRIPTION = (
    "OpenAI's API for LLaVA-1.5 and LLaVA-1.6 (NeXT) checkpoints. Images go in as image_url parts: data: URLs, or "
    "http and https URLs. Errors have the shape of the API that the path belongs to; every response has the header "
    "x-request-id."
)


@cache
def openapi_document(endpoints: Sequence[Endpoint], model: str = "llava-tiny-1.5") -> Schema:
    """Describe the endpoints that have a reply model. ``model``: the served name, for the examples."""
    described = [endpoint for endpoint in endpoints if endpoint.reply is not None]
    replies = {*(dialect_of(each.path).error for each in described), *(each.reply for each in described)}
    replies |= {event for each in described for event in each.events}
    models: set[Any] = {(reply, "serialization") for reply in replies}
    models |= {
        (given, "validation")
        for each in described
        for given in (each.request, each.form, each.query)
        if given is not None
    }
    in_order = sorted(models, key=lambda pair: pair[0].__name__)
    references, definitions = models_json_schema(in_order, ref_template="#/components/schemas/{model}")
    paths: dict[str, Schema] = {}
    for each in described:
        paths.setdefault(each.path, {})[each.method.lower()] = operation(each, references, model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llava-api", "version": __version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(definitions["$defs"].items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "If API keys are set."}},
        },
        "security": [{"key": []}, {}],
    }


def operation(endpoint: Endpoint, references: Any, model: str) -> Schema:
    """``references``: (model, mode) -> its place in the document."""
    media_type = getattr(endpoint.reply, "media_type", "application/json")
    reply: Schema = {media_type: {"schema": references[endpoint.reply, "serialization"]}}
    if endpoint.events:
        schema_of = event_schema if endpoint.stream is EventStream else line_schema
        reply[endpoint.stream.media_type] = {"schema": schema_of(endpoint, references)}
    responses: Schema = {"200": {"description": "OK", "content": reply}}
    for status in error_statuses(endpoint):
        content = {"application/json": {"schema": references[dialect_of(endpoint.path).error, "serialization"]}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    made: Schema = {"operationId": endpoint.operation_id, "summary": endpoint.summary, "responses": responses}
    parameters = re.findall(r"{(\w+)}", endpoint.path)
    if parameters:
        text = {"type": "string", "minLength": 1}
        made["parameters"] = [{"name": name, "in": "path", "required": True, "schema": text} for name in parameters]
    if endpoint.query is not None:
        fields = endpoint.query.model_json_schema()["properties"]
        made["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    if endpoint.form is not None:
        content = {"multipart/form-data": {"schema": references[endpoint.form, "validation"]}}
        made["requestBody"] = {"required": True, "content": content}
    if endpoint.request is not None:
        example = {"model": model} if "model" in endpoint.request.model_fields else {}
        example |= endpoint.example
        content = {"application/json": {"schema": references[endpoint.request, "validation"], "example": example}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def error_statuses(endpoint: Endpoint) -> list[int]:
    found = {405, 503}
    if not endpoint.probe:
        found |= {400, 401, 403}
    if "{" in endpoint.path:
        found.add(404)
    if endpoint.request is not None:
        found |= {404, 413, 429, 500}
    if endpoint.method == "POST" and endpoint.request is None:
        found.add(409)
    if endpoint.form is not None:
        found |= {413, 415, 429, 500, 507}
    return sorted(found)


def line_schema(endpoint: Endpoint, references: Any) -> Schema:
    """The schema of one line."""
    return {"description": LINES, "anyOf": [references[model, "serialization"] for model in endpoint.events]}


def event_schema(endpoint: Endpoint, references: Any) -> Schema:
    """The schema of one event: OpenAPI 3.1 cannot describe a whole stream."""
    models = [references[model, "serialization"] for model in endpoint.events]
    data: list[Schema] = [{"contentMediaType": "application/json", "contentSchema": {"anyOf": models}}]
    first = endpoint.events[0]
    if issubclass(first, NamedEvent):
        description = NAMED_EVENTS.format(first.last_events)
    else:
        description = CHUNKS
        data.append({"const": "[DONE]"})
    return {
        "type": "object",
        "description": description,
        "properties": {"event": {"type": "string"}, "data": {"type": "string", "anyOf": data}},
        "required": ["data"],
    }
