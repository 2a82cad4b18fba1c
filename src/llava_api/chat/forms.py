"""The form that a request wants its answer in, in vLLM's names: one of some texts, a pattern, or JSON."""

import json
from dataclasses import dataclass
from typing import Any

from llava_api.chat.grammar import ANY_OBJECT, json_grammar, text_grammar
from llava_api.chat.schema import ReadSchema, check_extent, read_schema
from llava_api.errors import InvalidRequest
from llava_api.protocol.sampling import ChoicesRequest


@dataclass(frozen=True, slots=True)
class Form:
    schema: ReadSchema
    """Of JSON; or an enum or a pattern that the answer's text must fit as it is."""
    bare: bool = False
    """Whether the answer is text rather than JSON."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of which the answer is one; empty for another form."""
        return tuple(self.schema.kept["enum"]) if self.bare and "enum" in self.schema.kept else ()

    @property
    def begins_with_space(self) -> bool:
        """Whether an answer may begin with a space of its own."""
        if self.choices:
            return any(choice.startswith(" ") for choice in self.choices)
        return self.bare and str(self.schema.kept["pattern"]).lstrip("^(?:").startswith((" ", "\\s"))

    def grammar(self, space_first: bool) -> str:
        """``space_first``: a space may come before the answer."""
        return text_grammar(self.schema.kept, space_first) if self.bare else json_grammar(self.schema.kept)

    def is_whole(self, text: str) -> bool:
        """Whether an answer is complete. Any text may be what a pattern matches."""
        return text in self.choices if self.choices else self.bare or is_json(text)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_form(request: ChoicesRequest) -> Form | None:
    """Raises InvalidRequest for several forms, and for one that exceeds a bound."""
    wanted = request.structured_outputs
    given: list[tuple[str, Any]] = [
        ("guided_choice", request.guided_choice),
        ("guided_regex", request.guided_regex),
        ("guided_json", request.guided_json),
    ]
    if wanted is not None:
        own = {"choice": wanted.choice, "regex": wanted.regex, "json": wanted.json_, "json_object": wanted.json_object}
        given += [(f"structured_outputs.{name}", value) for name, value in own.items()]
    found = [(param, value) for param, value in given if value is not None and value is not False]
    if len(found) > 1:
        raise InvalidRequest(f"An answer has one form: send {found[0][0]} or {found[1][0]}.", param=found[1][0])
    if not found:
        if wanted is None:
            return None
        raise InvalidRequest(
            "structured_outputs needs one of choice, regex, json and json_object.", param="structured_outputs"
        )
    param, value = found[0]
    if param.endswith(("choice", "regex")):
        text = {"enum": list(dict.fromkeys(value))} if param.endswith("choice") else {"pattern": value}
        check_extent(text, param)
        return Form(ReadSchema(param, text, text), bare=True)
    return Form(read_schema(ANY_OBJECT if value is True else value, param))
