"""The keywords of one schema: sloppy spellings are read as they are meant, and what no grammar can hold is left out."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

Part = dict[str, Any]
"""A schema, or a schema in it."""

TYPES = {
    **{name: name for name in ("array", "boolean", "integer", "null", "number", "object", "string")},
    **{"bool": "boolean", "int": "integer", "none": "null", "float": "number", "double": "number", "str": "string"},
    **{"list": "array", "tuple": "array", "dict": "object"},
}
"""Spelling of a type, in lower case -> the type. Python's names are those of many benchmarks' tools."""
COMMENTS = (
    *("$anchor", "$comment", "$dynamicAnchor", "$id", "$recursiveAnchor", "$schema", "$vocabulary"),
    *("contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated", "description"),
    *("example", "examples", "id", "readOnly", "title", "writeOnly"),
)
"""Keywords that forbid nothing."""
NOT_EMPTY = ("allOf", "anyOf", "enum", "oneOf", "required", "type")
"""Lists that mean nothing if they are empty."""
OBJECTS = ("additionalProperties", "items", "patternProperties", "properties")
"""Objects that PHP writes as ``[]`` if they are empty."""
COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
LENGTHS = ("minLength", "maxLength")
NUMBERS = (*COUNTS, *LENGTHS, "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""The formats that llguidance enforces. By JSON Schema's own rules any other format is a comment, which forbids
nothing."""
NOT_HELD = (
    *("$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else"),
    *("if", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
    "uniqueItems",
)
"""Keywords that llguidance does not support."""
LEFT_OUT = frozenset(
    {*NOT_HELD, "$ref", "additionalProperties", "oneOf", "pattern", "patternProperties", "type", *COUNTS[2:]}
)
"""Every keyword that may be left out: those, and others if they are used in a way that llguidance does not support."""
MAX_PATTERN = 512
"""Longest pattern."""
TOKENS = re.compile(r"\\.|\[\^?(?:\\.|[^\\\]])*\]|\(\?.{0,2}", re.DOTALL)
"""The escapes, the classes and the beginnings of special groups in a regular expression."""
UNSUPPORTED = re.compile(
    r"\\([<>]|[^\W_adDfnprPsStuUvwWxAz])|\(\?(<?[=!]|[>#])|\[(\^?\]|.*((?<!\\)\[|&&|--|~~|\\b))", re.DOTALL
)
"""Those that llguidance lacks or reads in another way: back references, word boundaries, look-around, some classes."""
NULL: Part = {"type": "null"}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def mend(part: Part) -> None:
    """Read sloppy spellings as they are meant, and take out what forbids nothing."""
    for name, value in list(part.items()):
        if name in OBJECTS and value == []:
            part[name] = {}
        elif name in COMMENTS or (value is None and name != "const") or (value == [] and name in NOT_EMPTY):
            del part[name]
        elif name in NUMBERS:
            part[name] = read_number(value)
        elif name == "items" and isinstance(value, str):
            part[name] = {"type": value}
    if part.get("format") not in FORMATS:
        part.pop("format", None)
    if part.get("uniqueItems") is False:
        del part["uniqueItems"]
    if "type" in part:
        types = [TYPES.get(one.strip().lower(), one) if isinstance(one, str) else one for one in listed(part["type"])]
        part["type"] = types if isinstance(part["type"], list) else types[0]
        if "any" in types:
            del part["type"]
    mend_required(part)
    if part.pop("nullable", None) is True:
        allow_null(part)


def read_number(value: Any) -> Any:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def mend_required(part: Part) -> None:
    """``required: true`` in a property, as in the third draft, becomes an entry of the list beside it."""
    if isinstance(part.get("required"), bool):
        del part["required"]
    elif isinstance(part.get("required"), str):
        part["required"] = [part["required"]]
    properties = part.get("properties")
    if not isinstance(properties, dict):
        return
    for name, value in properties.items():
        if value is None or value == []:
            properties[name] = {}
        elif isinstance(value, str):
            properties[name] = {"type": value}
        elif isinstance(value, dict) and value.get("required") is True:
            part["required"] = [*listed(part.get("required", [])), name]


def allow_null(part: Part) -> None:
    """What OpenAPI calls ``nullable``."""
    if any(name in part for name in ("$ref", "allOf", "anyOf", "oneOf", "const")):
        inner = dict(part)
        part.clear()
        part["anyOf"] = [inner, NULL]
        return
    if "type" in part:
        part["type"] = [*listed(part["type"]), "null"]
    if isinstance(part.get("enum"), list):
        part["enum"] = [*part["enum"], None]


def leave_out(part: Part, followed: Callable[[Any], Any]) -> list[str]:
    """Take out what a grammar cannot hold, after which more values fit, never fewer. Returns the keywords.

    ``followed``: a schema -> the one that its ``$ref`` leads to, if it has one.
    """
    names = [name for name in part if name in NOT_HELD]
    if any(name not in TYPES.values() for name in listed(part.get("type", "null"))):
        names.append("type")
    if isinstance(part.get("pattern"), str) and not is_supported(part["pattern"]):
        names.append("pattern")
    if not all(map(is_supported, table(part, "patternProperties"))):
        # The names that the patterns allowed are additional ones now.
        names += [name for name in ("patternProperties", "additionalProperties") if name in part]
    if not table(part, "properties").keys() <= required_names(part):
        names += [name for name in ("minProperties", "maxProperties") if name in part]
    for name in names:
        del part[name]
    if "patternProperties" in names:
        part["additionalProperties"] = True
    members = part.get("oneOf")
    if isinstance(members, list) and not exclude_each_other([followed(member) for member in members]):
        # It stays, and the grammar reads it as anyOf.
        names.append("oneOf")
    return names


def table(part: Part, name: str) -> dict[str, Any]:
    value = part.get(name)
    return value if isinstance(value, dict) else {}


def required_names(part: Part) -> set[str]:
    return {name for name in listed(part.get("required")) if isinstance(name, str)}


def is_supported(pattern: str) -> bool:
    """Whether the grammar can hold it, as far as its text shows. A pattern that is too long is refused elsewhere."""
    return len(pattern) > MAX_PATTERN or not any(UNSUPPORTED.match(token) for token in TOKENS.findall(pattern))


def exclude_each_other(members: Sequence[Any]) -> bool:
    """Whether no value fits two of the schemas: by their types, or constants, also of a property that all require."""
    if not all(isinstance(member, dict) and len(required_names(member)) <= 16 for member in members):
        return False
    columns = [list(map(kind, members)), list(map(constant, members))]
    for name in set.intersection(*map(required_names, members)):
        columns.append([constant(table(member, "properties").get(name)) for member in members])
    return any(None not in column and len(set(column)) == len(column) for column in columns)


def kind(schema: Part) -> str | None:
    found = schema.get("type")
    return "number" if found == "integer" else found if isinstance(found, str) else None


def constant(schema: Any) -> str | None:
    """The only value that fits, as JSON; None if there may be others."""
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return json.dumps(read_number(values[0])) if isinstance(values, list) and len(values) == 1 else None
