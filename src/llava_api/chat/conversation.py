"""Messages of a request -> turns and images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llava_api.images.load import ImagePart
from llava_api.images.source import stored_url
from llava_api.prompts.segments import Turn
from llava_api.protocol import messages as wire

Parts = list[str | int]
"""Texts and indexes of images, in the order in which they were sent."""
EMPTY = ("",)
"""The parts of a message without a word."""
MOST_SEARCHED = 128
"""Most calls without a result among which one is looked for by its function's name."""


@dataclass(frozen=True, slots=True)
class Conversation:
    system: str | None
    """The caller's system text, if any."""
    turns: tuple[Turn, ...]
    """User and assistant alternate. The first turn is a user's, which may be empty. If the last is an assistant's, the
    model continues it."""
    images: tuple[ImagePart, ...]
    """In the order of the request."""
    header: bool = True
    """Whether the prompt says, after a user's last turn, that the assistant is next."""

    @property
    def continues(self) -> bool:
        return self.turns[-1].role == "assistant"

    def characters(self) -> int:
        """Length of all texts together."""
        return len(self.system or "") + sum(len(turn.text) for turn in self.turns)

    def with_answer(self, text: str) -> "Conversation":
        """With what the assistant says next."""
        *earlier, last = self.turns
        if last.role == "assistant":
            return replace(self, turns=(*earlier, Turn("assistant", (last.text + text,))))
        # The space before an answer is the prompt's.
        return replace(self, turns=(*self.turns, Turn("assistant", (text.lstrip(" ") or text,))))

    def with_system(self, default: str, addition: str) -> "Conversation":
        """Add to the system text, which is ``default`` if the caller gave none."""
        system = default if self.system is None else self.system
        return replace(self, system=f"{system}\n\n{addition}" if system else addition)

    def answered(self) -> "Conversation":
        """Have the model answer, not continue: an empty user's turn follows an assistant's last one."""
        return replace(self, turns=(*self.turns, Turn("user", EMPTY))) if self.continues else self


class Transcript:
    """Collects messages; consecutive messages of one role become one turn."""

    def __init__(self) -> None:
        self.systems: list[str] = []
        self.spoken: list[tuple[str, Parts]] = []
        self.images: list[ImagePart] = []
        self.calls: dict[str, str] = {}
        """Id of a call -> name of its function."""
        self.unanswered: dict[str, str] = {}
        """Those without a result."""
        self.begun = False
        """Whether the last message is an assistant's words, which the model may continue."""

    def say(self, role: str, parts: Parts) -> None:
        """``role``: user, assistant, system or developer.

        A system message is part of the system text, wherever it is. LLaVA's system texts have no images, so they are
        shown in a user's turn in its place.
        """
        self.begun = role == "assistant"
        if role in ("system", "developer"):
            text, images = text_and_images(parts)
            if text or not images:
                self.systems.append(text)
            if not images:
                return
            role, parts = "user", images
        if self.spoken and self.spoken[-1][0] == role:
            self.spoken[-1][1].extend(parts)
        else:
            self.spoken.append((role, list(parts)))

    def show(self, image: ImagePart) -> int:
        """Returns the image's index."""
        self.images.append(image)
        return len(self.images) - 1

    def call(self, call_id: str | None, name: str, arguments: str) -> None:
        """Say a call as the model wrote it. Later results refer to it."""
        call_id = call_id or f"call {len(self.calls)}"
        self.calls[call_id] = self.unanswered[call_id] = name
        self.say("assistant", [f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'])
        self.begun = False

    def result(self, call_id: str | None, name: str | None, parts: Parts) -> None:
        """Give a function's result to the model as a user's message.

        It belongs to the call of that id. If there is none, because the client writes no ids or has dropped the call,
        it belongs to the first call without a result, of the function ``name`` if that is known.
        """
        if call_id not in self.calls:
            waiting = islice(self.unanswered.items(), MOST_SEARCHED)
            call_id = next((other for other, called in waiting if name in (None, called)), None)
        name = self.calls.get(call_id or "", name or "A function")
        self.unanswered.pop(call_id or "", None)
        text, images = text_and_images(parts)
        self.say("user", [f"{name} returned: {text}" if text else f"{name} returned:", *images])

    def finish(self, continues: bool | None = None) -> Conversation:
        """``continues``: whether an assistant's last turn is continued; None: if the last message is its words."""
        turns = [Turn(role, tuple(part for part in parts if part != "") or EMPTY) for role, parts in self.spoken]
        if turns and turns[-1] == Turn("assistant", EMPTY) and not continues:
            # Nothing is begun. Chat pages send the message that the answer will fill.
            turns.pop()
        if not turns or turns[0].role == "assistant":
            # LLaVA's prompts begin with a user's turn, so a greeting of the assistant gets an empty one before it.
            turns.insert(0, Turn("user", EMPTY))
        system = "\n".join(filter(None, self.systems)) if self.systems else None
        conversation = Conversation(system, tuple(turns), tuple(self.images))
        return conversation if continues or (continues is None and self.begun) else conversation.answered()


def text_and_images(parts: Parts) -> tuple[str, Parts]:
    texts = [part for part in parts if isinstance(part, str) and part]
    return "\n".join(texts), [part for part in parts if isinstance(part, int)]


def read_parts(content: str | Sequence[wire.ContentPart], param: str, transcript: Transcript) -> Parts:
    """``param``: the place of the content in the request, for errors about an image."""
    if isinstance(content, str):
        return [content]
    parts: Parts = []
    for index, part in enumerate(content):
        match part:
            case wire.TextPart():
                parts.append(part.text)
            case wire.RefusalPart():
                parts.append(part.refusal)
            case wire.ImagePart():
                parts.append(transcript.show(read_image(part, f"{param}[{index}]")))
            case wire.FilePart():
                parts.append(
                    transcript.show(ImagePart(stored_url(part.file.file_id), f"{param}[{index}].file.file_id"))
                )
    return parts


def read_image(part: wire.ImagePart, param: str) -> ImagePart:
    if part.image_url is None:
        return ImagePart(stored_url(part.file_id or ""), f"{param}.file_id", part.detail)
    param = f"{param}.image_url"
    if isinstance(part.image_url, str):
        return ImagePart(part.image_url, param, part.detail)
    return ImagePart(part.image_url.url, param, part.image_url.detail or part.detail)


def read_messages(messages: Sequence[wire.Message]) -> Transcript:
    transcript = Transcript()
    for position, message in enumerate(messages):
        param = f"messages[{position}]"
        parts = read_parts(message.content, f"{param}.content", transcript)
        match message:
            case wire.SystemMessage() | wire.UserMessage():
                transcript.say(message.role, parts)
            case wire.AssistantMessage():
                transcript.say("assistant", [*parts, message.refusal or ""])
                for made in message.tool_calls or ():
                    transcript.call(made.id, made.function.name, made.function.arguments)
                if message.function_call is not None:
                    transcript.call(None, message.function_call.name, message.function_call.arguments)
            case wire.ToolMessage():
                transcript.result(message.tool_call_id, message.name, parts)
    return transcript
