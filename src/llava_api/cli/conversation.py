"""A conversation as the messages of a chat request, and how its answers are sampled."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

Message = dict[str, Any]
"""One of OpenAI's messages: ``role`` and ``content``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Fields of a chat request; the server decides those that are None."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def fields(self) -> dict[str, float | int]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Immutable, so that a turn that fails leaves the conversation as it was."""

    system: str | None = None
    turns: tuple[Message, ...] = ()
    """Questions and answers, without the system prompt."""

    def messages(self) -> list[Message]:
        start: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*start, *self.turns]

    def asked(self, text: str, image_urls: Sequence[str] = ()) -> "Conversation":
        """With one more question. Its images come before its text, as LLaVA was trained."""
        if not image_urls:
            return self.with_message("user", text)
        parts: list[Message] = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
        return self.with_message("user", [*parts, {"type": "text", "text": text}])

    def answered(self, text: str) -> "Conversation":
        return self.with_message("assistant", text)

    def with_message(self, role: str, content: Any) -> "Conversation":
        return replace(self, turns=(*self.turns, {"role": role, "content": content}))

    def without_open_question(self) -> "Conversation":
        """Without its last question if that has no answer yet."""
        is_open = bool(self.turns) and self.turns[-1]["role"] == "user"
        return replace(self, turns=self.turns[:-1]) if is_open else self


def text_of(message: Message) -> str:
    """A message as one text for people."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] if part["type"] == "text" else "[image]" for part in content)


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
