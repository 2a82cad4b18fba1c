"""The text of an answer that may call functions -> free text, or calls part by part.

The grammar (``grammar.tools_grammar``) has fixed all but names and arguments, so that reading is looking for
``{"name": "...", "arguments": `` and counting braces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava_api.chat.grammar import call_head


@dataclass(frozen=True, slots=True)
class CallPart:
    index: int
    """Which of the answer's calls."""
    name: str | None
    """In a call's first part."""
    arguments: str


class CallReader:
    def __init__(self, names: Sequence[str]) -> None:
        self.heads = {call_head(name): name for name in names}
        self.state: Literal["undecided", "text", "arguments", "behind"] = "undecided"
        self.waiting = ""
        self.calls = 0
        self.depth = 0
        self.quoted = self.escaped = False

    @property
    def complete(self) -> bool:
        """Whether there are calls, and the last has all of its arguments: a stop text may lie within them."""
        return self.state == "behind"

    def read(self, text: str) -> list[str | CallPart]:
        """What is certain after the next ``text``."""
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
        """Look whether a call begins in what is waiting; returns what stands behind its head."""
        if self.state == "behind":
            # The brace that closes the last call, and the line end before the next.
            self.waiting = self.waiting.lstrip("}\n")
        head = next((head for head in self.heads if self.waiting.startswith(head)), None)
        if head is not None:
            rest, self.waiting = self.waiting[len(head) :], ""
            found.append(CallPart(self.calls, self.heads[head], ""))
            self.calls += 1
            self.state = "arguments"
            return rest
        if self.state == "undecided" and not any(head.startswith(self.waiting) for head in self.heads):
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
                    self.state = "behind"
                    return position + 1
        return len(text)

    def finish(self) -> str:
        """What was held back because it might have become a call; the beginning of one that was cut is no text."""
        return self.waiting if self.state == "undecided" and not self.waiting.startswith("{") else ""
