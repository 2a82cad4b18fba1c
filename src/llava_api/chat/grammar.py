"""The format of an answer as a grammar for the engine (llguidance's Lark).

JSON is written as json.dumps writes it, ``{"name": "value"}``: models have seen this form most, and it leaves no choice
of white space, which a small model might never end. A space may come first, because an answer begins with one after
"ASSISTANT:".
"""

import json
from collections.abc import Sequence
from typing import Any

from llava_api.chat.schema import Schema, look_up, parts_of
from llava_api.chat.tools import Tool, Toolbox

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT: Schema = {"type": "object"}
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
"""The formats that llguidance enforces. By JSON Schema's own rules any other format is a comment, which forbids
nothing."""
COMBINING = ("$ref", "allOf", "anyOf", "oneOf")


def json_value(schema: Schema) -> str:
    return "%json " + json.dumps({**narrowed(schema), "x-guidance": SPACING})


def narrowed(schema: Schema) -> Schema:
    """The schema without formats that llguidance does not know, and with objects that have only named properties.

    JSON Schema lets other properties be added, and a small model that does so does not find the end. So that is
    forbidden unless ``additionalProperties`` says otherwise. If one object is described in several places, none of them
    names all of its properties, and the objects are left as they are. The result still fits the given schema.
    """
    closes = not any(combines(part) for part, _ in parts_of(schema))
    made: dict[str, Any] = json.loads(json.dumps(schema))
    for part, _ in parts_of(made):
        if part.get("format") not in FORMATS:
            part.pop("format", None)
        properties = part.get("properties")
        if closes and isinstance(properties, dict) and set(part.get("required") or ()) <= set(properties):
            part.setdefault("additionalProperties", False)
    return made


def combines(part: Schema) -> bool:
    """Whether a value must fit several descriptions at once."""
    several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
    return several or sum(name in part for name in ("properties", *COMBINING)) > 1


def differs_from_calls(schema: Schema) -> bool:
    """Whether an answer of this schema cannot be mistaken for a call."""
    whole = narrowed(schema)
    reference = whole.get("$ref")
    if isinstance(reference, str) and "properties" not in whole:
        whole = look_up(whole, reference, "")
    properties = whole.get("properties")
    named = isinstance(properties, dict) and not {"name", "arguments"} <= properties.keys()
    return named and whole.get("additionalProperties") is False and not any(name in whole for name in COMBINING)


def json_grammar(schema: Schema) -> str:
    """An answer that is JSON of this schema."""
    return f"start: / ?/ answer\nanswer: {json_value(schema)}\n"


def call_prefix(name: str) -> str:
    """The text before a call's arguments. One more brace follows them."""
    return f'{{"name": "{name}", "arguments": '


def tools_grammar(toolbox: Toolbox, answer: Schema | None) -> str:
    """Calls, one a line. In mode auto also free text, or JSON of the schema ``answer``.

    Free text does not begin with a brace: from its first letter it is clear which of the two it is.
    """
    more = f' ("\\n" call){{0,{toolbox.most - 1}}}' if toolbox.most > 1 else ""
    lines = [*call_rules(toolbox.tools), f"calls: call{more}"]
    if toolbox.mode == "required":
        return "\n".join(["start: / ?/ calls", *lines, ""])
    if answer is not None:
        return "\n".join(["start: / ?/ (calls | answer)", f"answer: {json_value(answer)}", *lines, ""])
    return "\n".join(["start: / ?/ calls | TEXT", r"TEXT: /( ?[^ {](.|\n)*)?/", *lines, ""])


def call_rules(tools: Sequence[Tool]) -> list[str]:
    """The grammar's rules for calls, cut into the tokens in which llguidance reads JSON.

    llguidance never goes back over what it has read, and free JSON may be in the same place.
    """
    rules = ["call: " + " | ".join(f"call_{number}" for number in range(len(tools)))]
    for number, tool in enumerate(tools):
        pieces = ("{", '"name"', ": ", f'"{tool.name}"', ", ", '"arguments"', ": ")
        rules.append(f'call_{number}: {" ".join(map(json.dumps, pieces))} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: {json_value(tool.schema)}")
    return rules
