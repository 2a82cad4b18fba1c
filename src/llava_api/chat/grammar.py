"""The format of an answer as a grammar for the engine (llguidance's Lark).

JSON is written as json.dumps writes it, ``{"name": "value"}``: models have seen this form most, and it leaves no choice
of white space, which a small model might never end. A space may come first, because an answer begins with one after
"ASSISTANT:".
"""

import json
import re
from collections.abc import Sequence

from llava_api.chat.keywords import table
from llava_api.chat.schema import Schema, followed
from llava_api.chat.tools import Tool, Toolbox

OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
ANY_OBJECT: Schema = {"type": "object"}


def json_value(schema: Schema) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": OPTIONS})


def differs_from_calls(schema: Schema) -> bool:
    """Whether an answer of this schema cannot be mistaken for a call."""
    whole = schema if "properties" in schema else followed(schema, schema)
    if not isinstance(whole, dict) or not whole.keys().isdisjoint(("$ref", "allOf", "anyOf", "oneOf")):
        return False
    named = "properties" in whole and not {"name", "arguments"} <= table(whole, "properties").keys()
    return named and whole.get("additionalProperties") is False


def json_grammar(schema: Schema) -> str:
    """An answer that is JSON of this schema."""
    return f"start: / ?/ answer\nanswer: {json_value(schema)}\n"


def text_grammar(schema: Schema, space_first: bool) -> str:
    """An answer that is one of an enum's texts, or that a pattern matches, after a space if ``space_first``.

    It is one terminal, because llguidance would not go back from a choice to a longer one that begins like it.
    """
    choices = " | ".join(json.dumps(choice) for choice in schema.get("enum", ()))
    if not choices:
        # Lark writes a pattern between slashes.
        pattern = re.sub(r"(\\.)|/", lambda found: found[1] or "\\/", schema["pattern"], flags=re.DOTALL)
        choices = f"/{pattern}/"
    return f"start: ANSWER\nANSWER: {'/ ?/ ' if space_first else ''}({choices})\n"


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
        rules.append(f"arguments_{number}: {json_value(tool.schema.kept)}")
    return rules
