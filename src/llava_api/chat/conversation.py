"""Messages of a request -> turns and images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llava_api.errors import InvalidRequest
from llava_api.images.load import ImagePart
from llava_api.prompts.segments import Turn
from llava_api.protocol import messages as wire

Parts = list[str | int]
"""Texts and indexes of images, in the order in which they were sent."""


@dataclass(frozen=True, slots=True)
class Conversation:
    system: str | None
    """The caller's system text, if any."""
    turns: tuple[Turn, ...]
    """User and assistant alternate. The first turn is a user's, which may be empty. If the last is an assistant's, the
    model continues it."""
    images: tuple[ImagePart, ...]
    """In the order of the request."""

    @property
    def continues(self) -> bool:
        return self.turns[-1].role == "assistant"

    def characters(self) -> int:
        """Length of all texts together."""
        return len(self.system or "") + sum(len(turn.text) for turn in self.turns)

    def with_system(self, default: str, addition: str) -> "Conversation":
        """Add to the system text, which is ``default`` if the caller gave none."""
        system = default if self.system is None else self.system
        return replace(self, system=f"{system}\n\n{addition}" if system else addition)


class Transcript:
    """Collects messages; consecutive messages of one role become one turn."""

    def __init__(self) -> None:
        self.systems: list[str] = []
        self.spoken: list[tuple[str, list[Parts]]] = []
        self.images: list[ImagePart] = []
        self.calls: dict[str, str] = {}
        """Id of a call -> name of its function."""

    def say(self, role: str, parts: Parts) -> None:
        if self.spoken and self.spoken[-1][0] == role:
            self.spoken[-1][1].append(parts)
        else:
            self.spoken.append((role, [parts]))

    def show(self, image: ImagePart) -> int:
        """Returns the image's index."""
        self.images.append(image)
        return len(self.images) - 1

    def call(self, call_id: str, name: str, arguments: str) -> str:
        """Returns a call as the model wrote it. Later results refer to it."""
        self.calls[call_id] = name
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'

    def result(self, call_id: str, parts: Parts, param: str) -> None:
        """Give a function's result to the model as a user's message. Raises InvalidRequest."""
        name = self.calls.get(call_id)
        if name is None:
            raise InvalidRequest("This answers a call that no message before it made.", param=param)
        texts = [part for part in parts if isinstance(part, str)]
        images: Parts = [part for part in parts if isinstance(part, int)]
        self.say("user", [f"{name} returned: " + "\n".join(texts), *images])

    def finish(self, param: str) -> Conversation:
        """Raises InvalidRequest if there are no messages of users or assistants."""
        turns = [one_turn(role, messages) for role, messages in self.spoken]
        if not turns:
            raise InvalidRequest(f"There is nothing to answer: {param} has no user's message.", param=param)
        if turns[0].role == "assistant":
            # LLaVA's prompts begin with a user's turn, so a greeting of the assistant gets an empty one before it.
            turns.insert(0, turn_of("user", [""]))
        return Conversation("\n".join(self.systems) if self.systems else None, tuple(turns), tuple(self.images))


def turn_of(role: str, parts: Sequence[str | int]) -> Turn:
    texts = [part for part in parts if isinstance(part, str)]
    return Turn(role, "\n".join(texts), tuple(part for part in parts if isinstance(part, int)), tuple(parts))


def one_turn(role: str, messages: Sequence[Sequence[str | int]]) -> Turn:
    if len(messages) == 1:
        return turn_of(role, messages[0])
    return turn_of(role, [part for parts in messages for part in parts if part != ""])


def json_text(arguments: dict[str, Any], param: str) -> str:
    """Arguments of a call as the model writes them. Raises InvalidRequest."""
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except RecursionError:
        raise InvalidRequest(f"'{param}' is nested too deeply.", param=param) from None


class HasText(Protocol):
    """A text part of any API."""

    text: str


def plain_text(content: str | Sequence[HasText | wire.RefusalPart] | None) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(part.refusal if isinstance(part, wire.RefusalPart) else part.text for part in content)


def read_parts(content: str | Sequence[wire.UserPart], param: str, transcript: Transcript) -> Parts:
    """``param``: the place of the content in the request, for errors about an image."""
    if isinstance(content, str):
        return [content]
    parts: Parts = []
    for index, part in enumerate(content):
        if isinstance(part, wire.TextPart | wire.InputTextPart):
            parts.append(part.text)
        else:
            parts.append(transcript.show(read_image(part, f"{param}[{index}].image_url")))
    return parts


def read_image(part: wire.ImagePart | wire.InputImagePart, param: str) -> ImagePart:
    if isinstance(part, wire.ImagePart) and isinstance(part.image_url, wire.ImageUrl):
        return ImagePart(part.image_url.url, param, part.image_url.detail)
    detail = part.detail if isinstance(part, wire.InputImagePart) else None
    return ImagePart(str(part.image_url), param, detail)


def read_assistant(message: wire.AssistantMessage, transcript: Transcript) -> Parts:
    text = plain_text(message.content) or message.refusal or ""
    calls = [transcript.call(made.id, made.function.name, made.function.arguments) for made in message.tool_calls or ()]
    return ["\n".join([*([text] if text or not calls else []), *calls])]


def read_conversation(messages: Sequence[wire.Message], continues: bool = False) -> Conversation:
    """``continues``: the last message is an assistant's, to be continued. Raises InvalidRequest."""
    transcript = Transcript()
    for position, message in enumerate(messages):
        param = f"messages[{position}]"
        match message:
            case wire.SystemMessage():
                transcript.systems.append(plain_text(message.content))
            case wire.UserMessage():
                transcript.say("user", read_parts(message.content, f"{param}.content", transcript))
            case wire.AssistantMessage():
                transcript.say("assistant", read_assistant(message, transcript))
            case wire.ToolMessage():
                parts = read_parts(message.content, f"{param}.content", transcript)
                transcript.result(message.tool_call_id, parts, f"{param}.tool_call_id")
    conversation = transcript.finish("messages")
    if continues and not conversation.continues:
        raise InvalidRequest("continue_final_message: the last message must be an assistant's.", param="messages")
    if conversation.continues and not continues:
        raise InvalidRequest(
            "The last message must be a user's: it is what the model answers. To have the model continue an "
            "assistant's message, send continue_final_message: true.",
            param="messages",
        )
    return conversation
