"""The messages that the page shows of a conversation.

Answers are other people's text. They are shown as Markdown, but nothing in them may become a tag, and no image in them
is fetched.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from llava_api.cli.ui.open_pages import AttachedImage, Turn

CODE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`)", re.DOTALL)
"""Parts of a Markdown text in which nothing is markup."""
TAG = re.compile(r"<(?=[A-Za-z/!?])")
NO_TEXT_YET = "…"


@dataclass(frozen=True, slots=True)
class ShownMessage:
    role: Literal["user", "assistant"]
    text: str
    """Markdown, or the HTML of a question's images."""
    turn: int
    is_images: bool = False


def shown_messages(turns: Sequence[Turn]) -> list[ShownMessage]:
    messages: list[ShownMessage] = []
    for number, turn in enumerate(turns):
        if turn.images:
            messages.append(ShownMessage("user", images_html(turn.images), number, is_images=True))
        messages.append(ShownMessage("user", turn.text, number))
        messages.append(ShownMessage("assistant", answer_text(turn), number))
    return messages


def message_at(turns: Sequence[Turn], index: int | tuple[int, int] | list[int]) -> ShownMessage | None:
    """``index``: as Gradio's events have it."""
    place = index if isinstance(index, int) else index[0]
    messages = shown_messages(turns)
    return messages[place] if 0 <= place < len(messages) else None


def answer_text(turn: Turn) -> str:
    parts = [without_markup(turn.answer)] if turn.answer else []
    if turn.error:
        parts.append(f"⚠ {without_markup(turn.error)}")
    if turn.note:
        parts.append(f"*{turn.note}*")
    return "\n\n".join(parts) or NO_TEXT_YET


def without_markup(markdown: str) -> str:
    """Without tags and images, of which the latter would be fetched from other servers."""
    pieces = CODE.split(markdown)
    pieces[::2] = [TAG.sub("&lt;", piece).replace("![", "!\\[") for piece in pieces[::2]]
    return "".join(pieces)


def images_html(images: Sequence[AttachedImage]) -> str:
    tags = [
        f'<img src="{escape(image.thumbnail.url)}" alt="Image {number}, {image.thumbnail.width} by '
        f'{image.thumbnail.height} pixels">'
        for number, image in enumerate(images, start=1)
    ]
    return f'<div class="sent">{"".join(tags)}</div>'
