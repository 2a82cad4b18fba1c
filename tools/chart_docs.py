"""Write the chart's values.schema.json and its README's table from values.yaml; ``--check`` fails if they are stale.

The comment above a value is its documentation. Its lines that start with @ are marks:

    @perModel        entries of ``models`` may have another value
    @free            a part of a Kubernetes object, copied unchecked
    @schema {...}    JSON schema of the value, laid over what its default shows
    @settings        the server's settings by name, except those that the chart makes itself
    @settings front  of these, the router's
    @models          the list of models

The dashboard is copied too, because a chart cannot read files outside its folder.
"""

import json
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llava_api.cli.flags import FRONT_SETTINGS
from llava_api.setting_types import Mark
from llava_api.settings import Settings, marked

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "llava-api"
DASHBOARD = ROOT / "dashboards" / "llava-api.json"
START, END = "<!-- values:start -->", "<!-- values:end -->"
MARK = re.compile(r"@(\w+)\s*(.*)")
KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Value:
    path: str
    default: Any
    text: str
    marks: dict[str, str]
    fields: list["Value"] = field(default_factory=list)
    """The values in it; empty if it is copied unchecked."""


def read_values(source: str) -> list[Value]:
    root = yaml.compose(source, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(values_of(root, source.splitlines(), ""))


def values_of(node: yaml.MappingNode, lines: list[str], above: str) -> Iterator[Value]:
    """Raises SystemExit for a value without a comment."""
    for key, content in node.value:
        text, marks = comment_above(lines, key.start_mark.line)
        path = f"{above}{key.value}"
        if not text:
            sys.exit(f"values.yaml: {path} has no comment that says what it is")
        default = yaml.SafeLoader("").construct_object(content, deep=True)
        inside = isinstance(content, yaml.MappingNode) and default and not marks.keys() & {"free", "schema"}
        if inside and not commented(content, lines):
            inside = False
        fields = list(values_of(content, lines, f"{path}.")) if inside else []
        yield Value(path, default, text, marks, fields)


def commented(node: yaml.MappingNode, lines: list[str]) -> bool:
    """Whether the entries of a map have comments of their own, so that each is a value."""
    return bool(comment_above(lines, node.value[0][0].start_mark.line)[0])


def comment_above(lines: list[str], row: int) -> tuple[str, dict[str, str]]:
    """The text in one line, and the marks."""
    above = []
    while row > 0 and (line := lines[row - 1].strip()).startswith("#"):
        above.append(line.removeprefix("#").strip())
        row -= 1
    texts, marks = [], {}
    for line in reversed(above):
        if mark := MARK.fullmatch(line):
            marks[mark[1]] = mark[2]
        else:
            texts.append(line)
    return " ".join(texts), marks


def schema_of(value: Value) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": value.text, "type": KINDS[type(value.default)]}
    if value.fields:
        schema |= {"properties": {name_of(one): schema_of(one) for one in value.fields}, "additionalProperties": False}
    elif "settings" in value.marks:
        names = FRONT_SETTINGS if value.marks["settings"] == "front" else tuple(Settings.model_fields)
        schema |= {"properties": settings_schema(names), "additionalProperties": False}
    elif "schema" in value.marks:
        given = json.loads(value.marks["schema"])
        if isinstance(value.default, dict) and "properties" in given:
            known = {name: {"type": KINDS[type(default)]} for name, default in value.default.items()}
            schema |= {"additionalProperties": False}
            given["properties"] = known | given["properties"]
        schema |= given
    elif isinstance(value.default, dict) and "free" not in value.marks:
        # Labels and annotations.
        schema["additionalProperties"] = {"type": "string"}
    return schema


def settings_schema(names: Collection[str]) -> dict[str, Any]:
    """The settings that values may contain. A list may be one text with commas, as in an environment variable."""
    found = {}
    made_by_chart = marked(Mark.MADE_BY_CHART)
    for name, one in sorted(Settings.model_json_schema()["properties"].items()):
        if name in made_by_chart or name not in names:
            continue
        schema = {key: one[key] for key in ("description", "type", "anyOf", "enum", "minimum", "maximum") if key in one}
        schema["description"] = " ".join(schema.get("description", "").split())
        schema.pop("items", None)
        if schema.get("type") == "array":
            schema["type"] = ["array", "string"]
        if "anyOf" in schema:
            schema["anyOf"] = [part for part in schema["anyOf"] if part.get("type") != "null"]
        found[name] = schema
    return found


def models_schema(values: list[Value]) -> dict[str, Any]:
    own = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 24}
    properties = {"name": {"description": "Ends the names of its objects.", **own}}
    for value in values:
        if "perModel" in value.marks:
            properties[value.path] = {"$ref": f"#/properties/{value.path}"}
    model = {"type": "object", "properties": properties, "required": ["name", "model"], "additionalProperties": False}
    return {"items": model}


def name_of(value: Value) -> str:
    return value.path.rpartition(".")[2]


def schema(values: list[Value]) -> str:
    properties = {}
    for value in values:
        properties[value.path] = schema_of(value) | (models_schema(values) if "models" in value.marks else {})
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart llava-api; made by tools/chart_docs.py",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def table(values: list[Value]) -> str:
    rows = ["| value | default | per model | what it is |", "|---|---|---|---|"]
    for value in values:
        rows += rows_of(value, "perModel" in value.marks)
    return "\n".join(rows)


def rows_of(value: Value, per_model: bool) -> Iterator[str]:
    if value.fields:
        for one in value.fields:
            yield from rows_of(one, per_model)
        return
    default = json.dumps(value.default, ensure_ascii=False).replace("|", "\\|")
    text = value.text.replace("|", "\\|")
    yield f"| `{value.path}` | `{default}` | {'yes' if per_model else ''} | {text} |"


def with_table(readme: str, values: list[Value]) -> str:
    before, rest = readme.split(START, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}\n{table(values)}\n{END}{after}"


def main() -> None:
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    fresh = {"values.schema.json": schema(values), "README.md": with_table(readme, values)}
    if DASHBOARD.exists():
        fresh["files/dashboard.json"] = DASHBOARD.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        stale = [
            name
            for name, text in fresh.items()
            if not (CHART / name).exists() or (CHART / name).read_text(encoding="utf-8") != text
        ]
        if stale:
            sys.exit(f"{', '.join(stale)} of the chart is stale: run .venv/bin/python tools/chart_docs.py")
        return
    for name, text in fresh.items():
        (CHART / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
