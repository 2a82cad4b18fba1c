"""What was said so far, in the form of OpenAI's messages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]
"""As it goes over the wire: ``role`` and ``content``."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Never changed: a turn that fails leaves the one before it as it was."""

    system: str | None = None
    turns: tuple[Message, ...] = ()
    """Questions and answers, without the system prompt."""

    def messages(self) -> list[Message]:
        start: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*start, *self.turns]

    def asked(self, text: str, picture_urls: Sequence[str] = ()) -> "Conversation":
        """With one more question; its pictures stand before the text, as LLaVA was trained."""
        if not picture_urls:
            return self.with_message("user", text)
        parts: list[Message] = [{"type": "image_url", "image_url": {"url": url}} for url in picture_urls]
        return self.with_message("user", [*parts, {"type": "text", "text": text}])

    def answered(self, text: str) -> "Conversation":
        return self.with_message("assistant", text)

    def with_message(self, role: str, content: Any) -> "Conversation":
        return replace(self, turns=(*self.turns, {"role": role, "content": content}))

    def before_question(self) -> "Conversation":
        """Without a question at its end that has no answer."""
        left = bool(self.turns) and self.turns[-1]["role"] == "user"
        return replace(self, turns=self.turns[:-1]) if left else self


def text_of(message: Message) -> str:
    """What a person reads of it."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] if part["type"] == "text" else "[picture]" for part in content)
