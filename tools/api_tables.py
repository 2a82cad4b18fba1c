"""Write the tables of ``docs/api.md`` from the endpoints' declarations; ``--check`` fails if they are out of date."""

from typing import Any

from pydantic import BaseModel

from llava_api.protocol.refused import VLLM, VLLM_IGNORED
from llava_api.protocol.wire import RequestObject
from llava_api.server.endpoint import Endpoint
from llava_api.server.openapi import openapi_document
from llava_api.server.routes import ENDPOINTS
from tools.docs_page import DOCS, write

REFERENCE = "#/components/schemas/"
DOCUMENT = openapi_document(ENDPOINTS)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "below {}",
    "minLength": "{} or more characters",
    "maxLength": "up to {} characters",
    "minItems": "{} or more entries",
    "maxItems": "up to {} entries",
    "maxProperties": "up to {} entries",
    "pattern": "`{}`",
}


def request_models(model: type[RequestObject] = RequestObject) -> dict[str, type[RequestObject]]:
    """Name of each model of requests -> the model."""
    found = {model.__name__: model}
    for subclass in model.__subclasses__():
        found |= request_models(subclass)
    return found


def values(schema: dict[str, Any]) -> str:
    """The values of a field in words, without null, which means that it is not given."""
    if "$ref" in schema:
        return link(schema["$ref"].removeprefix(REFERENCE))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [values(kind) for kind in schema[key] if kind.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    kind = schema.get("type", "anything")
    bounds = ", ".join(words.format(schema[key]) for key, words in BOUNDS.items() if key in schema)
    if kind == "array":
        kind = f"list of {values(schema.get('items', {}))}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {values(schema['additionalProperties'])}"
    return f"{kind}, {bounds}" if bounds else str(kind)


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def status(description: str) -> str:
    if description.startswith("Accepted"):
        return "accepted"
    return "extension" if "xtension" in description else "supported"


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(name: str, model: type[RequestObject]) -> list[str]:
    """The fields of a model, required ones first. ``model`` has the fields without effect."""
    schema = SCHEMAS[name]
    required = schema.get("required", ())
    description = " ".join(schema.get("description", "").split())
    lines = ["", f"#### {name}", "", *([description, ""] if description else [])]
    if "properties" not in schema:
        return lines[:-1]
    lines += [row("field", "", "values", "meaning"), row("---", "---", "---", "---")]
    for field, described in sorted(schema.get("properties", {}).items(), key=lambda entry: entry[0] not in required):
        text = described.get("description", "")
        cell = f"**`{field}`**" if field in required else f"`{field}`"
        kind = "extension" if field in model.extensions else status(text)
        lines.append(row(cell, kind, values(described), text))
    for status_word, fields in (("ignored", model.ignored), ("refused", model.refused)):
        shared = VLLM_IGNORED if status_word == "ignored" else VLLM
        lines += [row(f"`{field}`", status_word, "", fields[field]) for field in sorted(fields.keys() - shared.keys())]
    if VLLM.keys() <= model.refused.keys():
        lines += ["", "It also ignores or refuses [fields of vLLM's server](#fields-of-vllms-server)."]
    return lines


def models_in(schema: object) -> list[str]:
    """Names of the models that a schema refers to, in order."""
    if isinstance(schema, dict):
        own = schema.get("$ref")
        found = [own.removeprefix(REFERENCE)] if isinstance(own, str) else []
        return found + [name for value in schema.values() for name in models_in(value)]
    return [name for value in schema for name in models_in(value)] if isinstance(schema, list) else []


def heading(endpoint: Endpoint, models: dict[str, list[type[BaseModel]]]) -> list[str]:
    lines = ["", f"### {endpoint.method} {endpoint.path}", "", f"{endpoint.summary}."]
    for title, listed in models.items():
        if listed:
            lines += ["", f"{title}: {', '.join(link(model.__name__) for model in listed)}."]
    reply = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]["responses"]["200"]["content"]
    described = [kind["schema"] for kind in reply.values() if "description" in kind["schema"]]
    return lines + [schema["description"] for schema in described]


def tables() -> str:
    """Each endpoint with its models, each model with the models in its fields, and no model twice."""
    requests, done = request_models(), set[str]()
    lines: list[str] = []
    for endpoint in ENDPOINTS:
        if endpoint.reply is None:
            continue
        models = {
            "Request": [endpoint.request] if endpoint.request else [],
            "Form": [endpoint.form] if endpoint.form else [],
            "Query": [endpoint.query] if endpoint.query else [],
            "Reply": [endpoint.reply],
            "Stream": list(endpoint.events),
        }
        lines += heading(endpoint, models)
        waiting = [model.__name__ for listed in models.values() for model in listed]
        while waiting:
            name = waiting.pop(0)
            if name not in done:
                done.add(name)
                lines += table(name, requests.get(name, RequestObject))
                waiting = [*models_in(SCHEMAS[name].get("properties", {})), *waiting]
    lines += ["", "### Fields of vLLM's server", "", row("field", "", "reason"), row("---", "---", "---")]
    lines += [row(f"`{name}`", "ignored", reason) for name, reason in sorted(VLLM_IGNORED.items())]
    lines += [row(f"`{name}`", "refused", reason) for name, reason in sorted(VLLM.items())]
    return "\n".join(lines).strip().replace("``", "`")


def main() -> None:
    write(DOCS / "api.md", "fields", f"\n{tables()}\n", "tools.api_tables")


if __name__ == "__main__":
    main()
