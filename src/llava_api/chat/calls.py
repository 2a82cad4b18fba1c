"""The text of an answer that may call functions -> free text, or calls part by part.

The grammar (``grammar.tools_grammar``) fixes everything but names and arguments. So it is enough to look for
``{"name": "...", "arguments": `` and to count braces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json

from llava_api.chat.grammar import call_prefix


@dataclass(frozen=True, slots=True)
class CallPart:
    index: int
    """Which of the answer's calls."""
    name: str | None
    """In a call's first part."""
    arguments: str


def arguments_object(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object; of an answer that was cut, what has come of them."""
    try:
        read: dict[str, Any] = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return read


class CallReader:
    def __init__(self, names: Sequence[str]) -> None:
        self.prefixes = {call_prefix(name): name for name in names}
        self.state: Literal["undecided", "text", "arguments", "complete"] = "undecided"
        self.waiting = ""
        self.calls = 0
        self.depth = 0
        self.quoted = self.escaped = False

    @property
    def complete(self) -> bool:
        """Whether there are calls, and the last has all of its arguments: a stop text may cut them off."""
        return self.state == "complete"

    def read(self, text: str) -> list[str | CallPart]:
        """What can be sent after the next ``text``."""
        found: list[str | CallPart] = []
        while text:
            if self.state == "text":
                found.append(text)
                break
            if self.state == "arguments":
                end = self.end_of_arguments(text)
                found.append(CallPart(self.calls - 1, None, text[:end]))
                text = text[end:]
                continue
            self.waiting += text
            text = self.decide(found)
        return found

    def decide(self, found: list[str | CallPart]) -> str:
        """Check whether a call begins in the waiting text. Returns the text after its prefix."""
        if self.state == "complete":
            # The brace that closes the last call, and the line end before the next.
            self.waiting = self.waiting.lstrip("}\n")
        prefix = next((prefix for prefix in self.prefixes if self.waiting.startswith(prefix)), None)
        if prefix is not None:
            rest, self.waiting = self.waiting[len(prefix) :], ""
            found.append(CallPart(self.calls, self.prefixes[prefix], ""))
            self.calls += 1
            self.state = "arguments"
            return rest
        if self.state == "undecided" and not any(prefix.startswith(self.waiting) for prefix in self.prefixes):
            rest, self.waiting = self.waiting, ""
            self.state = "text"
            return rest
        return ""

    def end_of_arguments(self, text: str) -> int:
        """How much of ``text`` belongs to the call's arguments, a JSON object."""
        for position, letter in enumerate(text):
            if self.quoted:
                self.quoted = self.escaped or letter != '"'
                self.escaped = letter == "\\" and not self.escaped
            elif letter == '"':
                self.quoted = True
            elif letter in "{[":
                self.depth += 1
            elif letter in "}]":
                self.depth -= 1
                if self.depth == 0:
                    self.state = "complete"
                    return position + 1
        return len(text)

    def finish(self) -> str:
        """Text that was held back because it might have become a call. The beginning of a call is not text."""
        return self.waiting if self.state == "undecided" and not self.waiting.startswith("{") else ""
