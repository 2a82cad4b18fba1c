"""Bounds on JSON Schemas of callers, checked before they are compiled.

The bounds are far beyond what a form for an answer needs (OpenAI's own are 5,000 properties and 10 levels) and far
below what hurts: compiling takes milliseconds within them.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from llava_api.errors import ErrorCode, InvalidRequest

Schema = Mapping[str, Any]

MAX_BYTES = 64_000
MAX_DEPTH = 32
MAX_NESTING = 100
MAX_ENUM = 1_000
MAX_PATTERN = 512
MAX_COUNT = 10_000
MAX_LENGTH = 100_000
MAX_PATTERNS = 50
MAX_ALTERNATIVES = 64
MAX_DIVISOR = 1_000
COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
LENGTHS = ("minLength", "maxLength")
VALUES = ("enum", "const", "default", "examples", "example")
"""The values of these keys are data, not schemas."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""The keys inside these are names of the caller's choice, not keywords."""


def check_schema(schema: Schema, param: str) -> None:
    """Raises InvalidRequest for a schema that exceeds a bound. Whether it compiles is checked later."""
    check_extent(schema, param)
    for part, depth in parts_of(schema):
        if depth > MAX_DEPTH:
            raise invalid_schema(param, f"it is deeper than {MAX_DEPTH} levels.")
        check_part(part, param)
    if sum(len(patterns_of(part)) + ("multipleOf" in part) for part, _ in parts_of(schema)) > MAX_PATTERNS:
        raise invalid_schema(param, f"it has pattern and multipleOf more than {MAX_PATTERNS} times.")
    check_references(schema, param)


def check_extent(schema: Schema, param: str) -> None:
    """Check nesting and size, data included, because Python's json only follows some hundreds of levels."""
    level: list[object] = [schema]
    depth = size = 0
    while level:
        depth += 1
        for value in level:
            size += len(value) if isinstance(value, str) else 8
            size += sum(map(len, value)) if isinstance(value, dict) else 0
        if depth > MAX_NESTING:
            raise invalid_schema(param, f"it is deeper than {MAX_NESTING} brackets.")
        if size > MAX_BYTES:
            raise invalid_schema(param, f"it is larger than {MAX_BYTES} bytes.")
        level = [inner for outer in level for inner in contents(outer)]


def contents(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def invalid_schema(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid schema for '{param}': {why}", param=param, code=ErrorCode.INVALID_SCHEMA)


def parts_of(schema: Schema) -> Iterator[tuple[dict[str, Any], int]]:
    """Every schema in a schema, with its depth; data in it (enum, default ...) is left out."""
    waiting: list[tuple[Any, int, bool]] = [(schema, 1, False)]
    while waiting:
        value, depth, names = waiting.pop()
        if isinstance(value, dict):
            if not names:
                yield value, depth
            # One level more than allowed, so that it is found.
            if depth <= MAX_DEPTH + 1:
                waiting += [
                    (inner, depth + (not names), not names and key in NAMED)
                    for key, inner in value.items()
                    if names or key not in VALUES
                ]
        elif isinstance(value, list):
            waiting += [(inner, depth, False) for inner in value]


def check_part(part: Schema, param: str) -> None:
    if "x-guidance" in part:
        raise invalid_schema(param, "x-guidance is the grammar's own and cannot be set.")
    for key, most in ((COUNTS, MAX_COUNT), (LENGTHS, MAX_LENGTH)):
        for name in key:
            value = part.get(name)
            if isinstance(value, int | float) and value > most:
                raise invalid_schema(param, f"{name} is above {most}.")
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(part.get(name), list) and len(part[name]) > MAX_ALTERNATIVES:
            raise invalid_schema(param, f"{name} has more than {MAX_ALTERNATIVES} members.")
    enum = part.get("enum")
    if isinstance(enum, list) and len(enum) > MAX_ENUM:
        raise invalid_schema(param, f"an enum has more than {MAX_ENUM} values.")
    divisor = part.get("multipleOf")
    if isinstance(divisor, int | float) and divisor > MAX_DIVISOR:
        raise invalid_schema(param, f"multipleOf is above {MAX_DIVISOR}.")
    if any(len(pattern) > MAX_PATTERN for pattern in patterns_of(part)):
        raise invalid_schema(param, f"a pattern is longer than {MAX_PATTERN} characters.")


def patterns_of(part: Schema) -> list[str]:
    by_pattern = part.get("patternProperties")
    found = [part.get("pattern"), *(by_pattern if isinstance(by_pattern, dict) else ())]
    return [pattern for pattern in found if isinstance(pattern, str)]


def check_references(schema: Schema, param: str) -> None:
    """Check that references lead to schemas, rather than into data, which is not bounded, and never to themselves.

    A schema may contain itself in a property or an item, as a tree does.
    """
    same = {id(part): [id(other) for other in same_value(schema, part, param)] for part, _ in parts_of(schema)}
    if any(other not in same for others in same.values() for other in others):
        raise invalid_schema(param, "a $ref leads to something that is not a schema.")
    try:
        TopologicalSorter(same).prepare()
    except CycleError as error:
        raise invalid_schema(param, "a $ref leads to itself.") from error


def same_value(schema: Schema, part: Schema, param: str) -> Iterator[Schema]:
    """The other schemas that a value of ``part`` must fit."""
    reference = part.get("$ref")
    if reference is not None:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise invalid_schema(param, "a $ref leads out of the schema; only those that start with # are followed.")
        other = look_up(schema, reference, param)
        if isinstance(other, dict):
            yield other
    for name in ("allOf", "anyOf", "oneOf"):
        members = part.get(name)
        yield from (member for member in members if isinstance(member, dict)) if isinstance(members, list) else ()


def look_up(schema: Schema, reference: str, param: str) -> Any:
    """What a JSON pointer such as ``#/$defs/shape`` names."""
    here: Any = schema
    for step in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and name in here:
            here = here[name]
        elif isinstance(here, list) and name.isdigit() and int(name) < len(here):
            here = here[int(name)]
        else:
            raise invalid_schema(param, "a $ref leads nowhere.")
    return here


def check_special_texts(schema: Schema, specials: Collection[str], param: str) -> None:
    """Raises InvalidRequest for a schema that would have the model write the text of one of its special tokens.

    llguidance takes such a text for the token, which no answer may have.
    """
    written = json.dumps(schema, ensure_ascii=False)
    for special in specials:
        if len(special) > 2 and json.dumps(special, ensure_ascii=False)[1:-1] in written:
            raise invalid_schema(
                param, f"it has the text of this model's special token {special}, which no answer may have."
            )
