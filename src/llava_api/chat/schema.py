"""A caller's JSON Schema -> the schema that the grammar of the answer holds, within bounds.

The bounds are far beyond what a form for an answer needs (OpenAI's own are 5,000 properties and 10 levels) and far
below what hurts: compiling takes milliseconds within them.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from llava_api.chat.keywords import COUNTS, LENGTHS, MAX_PATTERN, Part, leave_out, listed, mend, required_names, table
from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.telemetry.log_lines import cut

Schema = Mapping[str, Any]

MAX_BYTES = 64_000
MAX_DEPTH = 32
MAX_NESTING = 100
MAX_PATTERNS = 50
MOST_MEMBERS = {"allOf": 64, "anyOf": 64, "oneOf": 64, "enum": 1_000}
BOUNDS = {**dict.fromkeys(COUNTS, 10_000), **dict.fromkeys(LENGTHS, 100_000), "multipleOf": 1_000}
VALUES = ("enum", "const")
"""The values of these keys are data, not schemas."""
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""The keys inside these are names of the caller's choice, not keywords."""
COMBINING = (
    *("properties", "$ref", "allOf", "anyOf", "oneOf", "if", "then", "else"),
    *("dependencies", "dependentSchemas", "$dynamicRef", "$recursiveRef"),
)
"""Keywords that describe an object, or refer to what does."""


@dataclass(frozen=True, slots=True)
class ReadSchema:
    """A caller's schema of an answer, or of a function's arguments."""

    param: str
    """The field that it comes from."""
    given: Schema
    """What the model is told."""
    kept: Part
    """What the grammar holds the model to."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Keyword that the grammar cannot hold -> the first place in the schema that has it."""
    strict: bool = False
    """Whether the caller would rather be refused than have a keyword left out."""


def read_schema(given: Schema, param: str, strict: bool | None = False) -> ReadSchema:
    """Raises InvalidRequest for a schema that exceeds a bound. Whether it compiles is checked later."""
    check_extent(given, param)
    kept: Part = json.loads(json.dumps(given))
    # Null is no answer.
    kept.pop("nullable", None)
    closes = True
    for part, depth, _ in parts_of(kept):
        if depth > MAX_DEPTH:
            raise invalid_schema(param, f"it is deeper than {MAX_DEPTH} levels.")
        mend(part)
        closes = closes and not combines(part)
    left_out: dict[str, str] = {}
    patterns = 0
    for part, _, place in parts_of(kept):
        for name in leave_out(part, lambda member: followed(kept, member)):
            left_out.setdefault(name, place)
        check_part(part, param, place)
        patterns += len(patterns_of(part)) + ("multipleOf" in part)
        if closes and required_names(part) <= table(part, "properties").keys() and "properties" in part:
            part.setdefault("additionalProperties", False)
    if patterns > MAX_PATTERNS:
        raise invalid_schema(param, f"it has pattern and multipleOf more than {MAX_PATTERNS} times.")
    leave_out_references(kept, left_out, param)
    return ReadSchema(param, given, kept, left_out, bool(strict))


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


def refused_by_engine(schema: ReadSchema, complaint: str) -> InvalidRequest:
    """``complaint``: llguidance's words, which quote a pattern that they are about."""
    if schema.param.endswith("regex"):
        message = f"Invalid value for '{schema.param}': the pattern does not work: {complaint}"
        return InvalidRequest(message, param=schema.param, code=ErrorCode.INVALID_SCHEMA)
    for part, _, place in parts_of(schema.kept):
        if any(f" {pattern} " in complaint or f"/{pattern}/" in complaint for pattern in patterns_of(part)):
            return invalid_schema(schema.param, f"{place or 'it'} has a pattern that does not work: {complaint}")
    return invalid_schema(schema.param, complaint)


def parts_of(schema: Part) -> Iterator[tuple[Part, int, str]]:
    """Every schema in a schema, with its depth and its place; data in it (enum, const) is left out."""
    waiting: list[tuple[Any, int, str, bool]] = [(schema, 1, "", False)]
    while waiting:
        value, depth, place, names = waiting.pop()
        if isinstance(value, dict):
            if not names:
                yield value, depth, place
            # One level more than allowed, so that it is found.
            if depth <= MAX_DEPTH + 1:
                waiting += [
                    (inner, depth + (not names), at(place, key), not names and key in NAMED)
                    for key, inner in reversed(value.items())
                    if isinstance(inner, dict | list) and (names or key not in VALUES)
                ]
        elif isinstance(value, list):
            waiting += reversed([(inner, depth, f"{place}[{index}]", False) for index, inner in enumerate(value)])


def at(place: str, key: str) -> str:
    return f"{place}.{cut(key)}" if place else cut(key)


def combines(part: Part) -> bool:
    """Whether a value must fit several descriptions at once."""
    several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
    needed = [name for names in table(part, "dependentRequired").values() for name in listed(names)]
    unnamed = any(not isinstance(name, str) or name not in table(part, "properties") for name in needed)
    return several or unnamed or sum(name in part for name in COMBINING) > 1


def check_part(part: Part, param: str, place: str) -> None:
    """Raises InvalidRequest for a keyword whose value is of the wrong kind or exceeds its bound."""
    for name, value in part.items():
        why = wrong_with(name, value)
        if why:
            raise invalid_schema(param, f"{at(place, name)} {why}.")
    if any(len(pattern) > MAX_PATTERN for pattern in patterns_of(part)):
        raise invalid_schema(param, f"a pattern of {place or 'it'} is longer than {MAX_PATTERN} characters.")


def wrong_with(name: str, value: Any) -> str | None:
    members: Iterable[Any] = ()
    if name in MOST_MEMBERS:
        if not isinstance(value, list):
            return "must be a list"
        if len(value) > MOST_MEMBERS[name]:
            return f"has more than {MOST_MEMBERS[name]} members"
        members = value if name != "enum" else ()
    elif name in BOUNDS:
        if not isinstance(value, int | float) or value < 0:
            return "must be a number of 0 or more"
        if value > BOUNDS[name]:
            return f"is above {BOUNDS[name]}"
    elif name in NAMED:
        if not isinstance(value, dict):
            return "must be an object"
        members = value.values()
    elif name in ("items", "additionalProperties"):
        members = listed(value)
    elif name == "x-guidance":
        return "is the grammar's own and cannot be set"
    return None if all(isinstance(member, dict | bool) for member in members) else "must have schemas"


def patterns_of(part: Part) -> list[str]:
    found = [part.get("pattern"), *table(part, "patternProperties")]
    return [pattern for pattern in found if isinstance(pattern, str)]


def leave_out_references(schema: Part, left_out: dict[str, str], param: str) -> None:
    """Take out references that lead to no schema in this one: others are never fetched, and data is not bounded.

    Raises InvalidRequest for one that leads to itself. A schema may contain itself in a property or an item, as a tree
    does.
    """
    parts = {id(part): (part, place) for part, _, place in parts_of(schema)}
    for part, place in parts.values():
        target = followed(schema, part)
        if "$ref" in part and not isinstance(target, bool) and id(target) not in parts:
            del part["$ref"]
            left_out.setdefault("$ref", place)
    same = {key: [id(other) for other in same_value(schema, part)] for key, (part, _) in parts.items()}
    try:
        TopologicalSorter(same).prepare()
    except CycleError as error:
        raise invalid_schema(param, f"{at(parts[error.args[1][0]][1], '$ref')} leads to itself.") from error


def same_value(schema: Part, part: Part) -> Iterator[Part]:
    """The other schemas that a value of ``part`` must fit."""
    others = [followed(schema, part)] if "$ref" in part else []
    for name in ("allOf", "anyOf", "oneOf"):
        others += listed(part.get(name))
    yield from (other for other in others if isinstance(other, dict))


def followed(schema: Schema, part: Any) -> Any:
    """What the part's ``$ref``, a JSON pointer such as ``#/$defs/shape``, names; the part itself if it has none.

    None if it leads nowhere.
    """
    if not isinstance(part, dict) or "$ref" not in part:
        return part
    here: Any = schema
    reference = part["$ref"]
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    for step in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and name in here:
            here = here[name]
        elif isinstance(here, list) and name.isdecimal() and len(name) < 6 and int(name) < len(here):
            here = here[int(name)]
        else:
            return None
    return here


def check_special_texts(schema: ReadSchema, specials: Collection[str]) -> None:
    """Raises InvalidRequest for a schema that would have the model write the text of one of its special tokens.

    llguidance takes such a text for the token, which no answer may have.
    """
    written = json.dumps(schema.kept, ensure_ascii=False)
    for special in specials:
        if len(special) > 2 and json.dumps(special, ensure_ascii=False)[1:-1] in written:
            raise invalid_schema(
                schema.param, f"it has the text of this model's special token {special}, which no answer may have."
            )
