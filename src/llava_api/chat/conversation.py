"""Wire messages -> turns and image parts, as people mean them."""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.errors import InvalidRequest
from llava_api.images.load import ImagePart
from llava_api.prompts.segments import Turn
from llava_api.protocol import chat as wire


@dataclass(frozen=True, slots=True)
class Conversation:
    system: str | None
    """The caller's system text; None where none was given."""
    turns: tuple[Turn, ...]
    """User and assistant in turn, a user's first and last."""
    images: tuple[ImagePart, ...]
    """In the order of the request."""

    def characters(self) -> int:
        """Of all texts together."""
        return len(self.system or "") + sum(len(turn.text) for turn in self.turns)


def plain_text(content: str | Sequence[wire.TextPart] | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def read_user(message: wire.UserMessage, position: int, images: list[ImagePart]) -> list[str | int]:
    """The texts and pictures of one user message, in order; its pictures are appended to ``images``."""
    if isinstance(message.content, str):
        return [message.content]
    parts: list[str | int] = []
    for index, part in enumerate(message.content):
        if isinstance(part, wire.TextPart | wire.InputTextPart):
            parts.append(part.text)
        else:
            parts.append(len(images))
            images.append(read_image(part, f"messages[{position}].content[{index}].image_url"))
    return parts


def read_image(part: wire.ImagePart | wire.InputImagePart, param: str) -> ImagePart:
    if isinstance(part, wire.ImagePart) and isinstance(part.image_url, wire.ImageUrl):
        return ImagePart(part.image_url.url, param, part.image_url.detail)
    detail = part.detail if isinstance(part, wire.InputImagePart) else None
    return ImagePart(str(part.image_url), param, detail)


def turn_of(role: str, parts: Sequence[str | int]) -> Turn:
    texts = [part for part in parts if isinstance(part, str)]
    return Turn(role, "\n".join(texts), tuple(part for part in parts if isinstance(part, int)), tuple(parts))


def one_turn(role: str, messages: Sequence[Sequence[str | int]]) -> Turn:
    """Messages of one role in a row are one turn."""
    if len(messages) == 1:
        return turn_of(role, messages[0])
    return turn_of(role, [part for parts in messages for part in parts if part != ""])


def read_conversation(messages: Sequence[wire.Message]) -> Conversation:
    """Raises InvalidRequest where no answer can follow."""
    systems: list[str] = []
    spoken: list[tuple[str, list[list[str | int]]]] = []
    images: list[ImagePart] = []
    for position, message in enumerate(messages):
        if isinstance(message, wire.SystemMessage):
            systems.append(plain_text(message.content))
            continue
        parts: list[str | int]
        if isinstance(message, wire.UserMessage):
            role, parts = "user", read_user(message, position, images)
        else:
            role, parts = "assistant", [plain_text(message.content) or message.refusal or ""]
        if spoken and spoken[-1][0] == role:
            spoken[-1][1].append(parts)
        else:
            spoken.append((role, [parts]))
    turns = [one_turn(role, messages) for role, messages in spoken]
    if not turns or turns[-1].role != "user":
        raise InvalidRequest("The last message must be a user's: it is what the model answers.", param="messages")
    if turns[0].role != "user":
        raise InvalidRequest("The first message after the system's must be a user's.", param="messages")
    return Conversation("\n".join(systems) if systems else None, tuple(turns), tuple(images))
