"""A conversation -> what the page shows of it, and back: which turn a shown message belongs to.

Answers are other people's text. They are shown as Markdown, but nothing in them may become a tag, and no picture in
them is fetched.
"""

import re
from dataclasses import dataclass
from html import escape
from typing import Literal

from llava_api.cli.ui.conversation import Conversation, Picture, Turn

CODE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`)", re.DOTALL)
"""Parts of a Markdown text in which nothing is markup."""
TAG = re.compile(r"<(?=[A-Za-z/!?])")
WAITING = "…"


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["user", "assistant"]
    text: str
    """Markdown; of ``pictures``, HTML that was made here."""
    turn: int
    kind: Literal["text", "pictures"] = "text"


def shown(conversation: Conversation) -> list[Message]:
    messages: list[Message] = []
    for number, turn in enumerate(conversation.turns):
        if turn.pictures:
            messages.append(Message("user", pictures_html(turn.pictures), number, "pictures"))
        messages.append(Message("user", turn.text, number))
        messages.append(Message("assistant", answer_text(turn), number))
    return messages


def answer_text(turn: Turn) -> str:
    parts = [harmless(turn.answer)] if turn.answer else []
    if turn.error:
        parts.append(f"⚠ {harmless(turn.error)}")
    if turn.note:
        parts.append(f"*{turn.note}*")
    return "\n\n".join(parts) or WAITING


def harmless(markdown: str) -> str:
    """The same without tags and without pictures, which would be fetched from wherever they say."""
    pieces = CODE.split(markdown)
    pieces[::2] = [TAG.sub("&lt;", piece).replace("![", "!\\[") for piece in pieces[::2]]
    return "".join(pieces)


def pictures_html(pictures: tuple[Picture, ...]) -> str:
    shown = [
        f'<img src="{escape(picture.thumbnail.url)}" alt="Picture {number}, {picture.thumbnail.width} by '
        f'{picture.thumbnail.height} pixels">'
        for number, picture in enumerate(pictures, start=1)
    ]
    return f'<div class="sent">{"".join(shown)}</div>'


def turn_of(conversation: Conversation, index: int | tuple[int, int] | list[int]) -> int | None:
    """The turn of the shown message ``index``; None where there is none."""
    place = index if isinstance(index, int) else index[0]
    messages = shown(conversation)
    return messages[place].turn if 0 <= place < len(messages) else None


def is_pictures(conversation: Conversation, index: int | tuple[int, int] | list[int]) -> bool:
    """Whether the shown message ``index`` is a question's pictures: nobody edits those."""
    place = index if isinstance(index, int) else index[0]
    messages = shown(conversation)
    return 0 <= place < len(messages) and messages[place].kind == "pictures"
