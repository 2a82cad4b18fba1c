"""Write the tables of ``docs/api.md`` from the wire models; ``--check`` fails where they are stale."""

import sys
from pathlib import Path
from typing import Any

from llava_api.protocol.refused import VLLM
from llava_api.protocol.wire import RequestObject
from llava_api.server.openapi import openapi_document
from llava_api.server.routes import ENDPOINTS

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
START, END = "<!-- fields:start -->", "<!-- fields:end -->"
REFERENCE = "#/components/schemas/"
BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "below {}",
    "minLength": "{} characters or more",
    "maxLength": "up to {} characters",
    "minItems": "{} or more",
    "maxItems": "up to {}",
    "maxProperties": "up to {} entries",
    "pattern": "`{}`",
}


def refusals() -> dict[str, dict[str, str]]:
    """Model's name -> field -> why it is refused."""
    found: dict[str, dict[str, str]] = {}
    waiting = [RequestObject]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        found[model.__name__] = dict(model.refused)
    return found


def values(schema: dict[str, Any]) -> str:
    """What a field may be, in words; null, which means not given, is left out."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        return f"[{name}](#{name.lower()})"
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


def status(text: str) -> str:
    if text.startswith("Accepted"):
        return "accepted"
    return "extension" if "xtension" in text else "supported"


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def fields(name: str, schema: dict[str, Any], refused: dict[str, str]) -> list[str]:
    required = schema.get("required", ())
    lines = [row("field", "", "values", "meaning"), row("---", "---", "---", "---")]
    # The wire's order, what must be given first.
    properties = sorted(schema.get("properties", {}).items(), key=lambda entry: entry[0] not in required)
    for field, described in properties:
        text = described.get("description", "")
        shown = f"**`{field}`**" if field in required else f"`{field}`"
        lines.append(row(shown, status(text), values(described), text))
    own = {field: why for field, why in refused.items() if field not in VLLM}
    lines += [row(f"`{field}`", "refused", "", why) for field, why in sorted(own.items())]
    if len(own) < len(refused):
        lines += ["", "And [vLLM's own](#fields-of-vllms-server), refused."]
    return lines


def refused_everywhere() -> list[str]:
    head = ["", "### Fields of vLLM's server", "", row("field", "why"), row("---", "---")]
    return [*head, *(row(f"`{name}`", why) for name, why in sorted(VLLM.items()))]


def models_of(schema: object) -> list[str]:
    """Names of the models that a schema refers to, in order."""
    if isinstance(schema, dict):
        own = schema.get("$ref")
        found = [own.removeprefix(REFERENCE)] if isinstance(own, str) else []
        return found + [name for value in schema.values() for name in models_of(value)]
    return [name for value in schema for name in models_of(value)] if isinstance(schema, list) else []


def tables() -> str:
    """Each endpoint's request and reply, and behind each what it is made of; no model twice."""
    document = openapi_document(ENDPOINTS)
    schemas, refused, told = document["components"]["schemas"], refusals(), set()
    lines: list[str] = []

    def tell(name: str) -> None:
        waiting = [name]
        while waiting:
            now = waiting.pop(0)
            if now in told:
                continue
            told.add(now)
            schema = schemas[now]
            about = " ".join(schema.get("description", "").split())
            lines.extend(["", f"#### {now}", "", *([about, ""] if about else [])])
            lines.extend(fields(now, schema, refused.get(now, {})))
            waiting = [*models_of(schema.get("properties", {})), *waiting]

    for endpoint in ENDPOINTS:
        if endpoint.reply is None:
            continue
        request = [endpoint.request] if endpoint.request else []
        events = list(endpoint.stream.events) if endpoint.stream else []
        lines += ["", f"### {endpoint.method} {endpoint.path}", "", f"{endpoint.summary}."]
        for title, models in (("Request", request), ("Reply", [endpoint.reply]), ("Stream", events)):
            if models:
                names = [model.__name__ for model in models]
                lines += ["", f"{title}: " + ", ".join(f"[{name}](#{name.lower()})" for name in names) + "."]
        if endpoint.stream:
            lines += [endpoint.stream.description]
        for model in [*request, endpoint.reply, *events]:
            tell(model.__name__)
    return "\n".join([*lines, *refused_everywhere()]).strip().replace("``", "`")


def with_tables(page: str) -> str:
    before, rest = page.split(START, 1)
    return f"{before}{START}\n\n{tables()}\n\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    current = PAGE.read_text()
    fresh = with_tables(current)
    if "--check" in sys.argv[1:]:
        if fresh != current:
            sys.exit("docs/api.md's tables are stale: run .venv/bin/python tools/api_tables.py")
        return
    PAGE.write_text(fresh)


if __name__ == "__main__":
    main()
