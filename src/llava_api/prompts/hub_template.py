"""Family ``hub``: a checkpoint's own chat template (Jinja, as transformers runs it), for what no table describes.

The template is the checkpoint's code and runs in Jinja's sandbox. Typed text is given to it with a mark after every
character that a special token can start with, so that only the template's own words become special tokens or images.
The mark is a letter of Unicode's private use that occurs in none of the texts, as is the one that shows where an
assistant's message continues.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava_api.errors import InvalidRequest, StartupError
from llava_api.prompts.segments import ImageSlot, Learnable, Segment, SpecialToken, Turn, split_specials

IMAGE = "<image>"
PROBE = "zebra"
GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
Message = dict[str, Any]


class HubTemplate:
    """A chat template, tried at start-up to find out which form of messages it takes."""

    name = "hub"
    default_system = ""
    stop_texts: tuple[str, ...] = ()

    def __init__(self, source: str, specials: Sequence[str], bos_token: str | None, eos_token: str | None) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            # "generation" marks an assistant's words for training; here it is a block like any other.
            self.template = environment.from_string(GENERATION.sub(r"{#\1 \2#}", source))
        except (TemplateError, RecursionError) as error:
            raise StartupError(f"the checkpoint's chat template is not valid Jinja: {error}") from error
        self.tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        # A single letter cannot be distinguished from a typed one; no checkpoint's template needs one.
        self.specials = tuple(dict.fromkeys((IMAGE, *(special for special in specials if len(special) > 1))))
        self.starts = {special[0] for special in self.specials}
        self.as_parts = {role: self.wants_parts(role) for role in ("system", "user", "assistant")}
        self.drops_system = PROBE not in self.try_role("system", self.as_parts["system"])
        self.stop_tokens = self.find_stops()

    def takes_images(self) -> bool:
        """Whether it writes a place for an image."""
        try:
            probe = self.layout(None, [Turn("user", (0, PROBE))])
        except InvalidRequest:
            return False
        return ImageSlot(0) in probe and any(isinstance(segment, str) and PROBE in segment.lower() for segment in probe)

    def layout(self, system: str | None, turns: Sequence[Turn], header: bool = True) -> list[Segment]:
        """``header``: whether to write that the assistant is next.

        Raises InvalidRequest if the template refuses the messages or writes no place for an image.
        """
        mark, end = unused_letters([system or "", *(turn.text for turn in turns)])
        messages = self.messages(system, turns, mark)
        images = [image for turn in turns for image in turn.images]
        if turns[-1].role != "assistant":
            return self.segments(self.write(messages, header), images, mark)
        messages[-1] = self.message("assistant", (*turns[-1].images, turns[-1].text + end), mark)
        before, found, _ = self.write(messages, header=False).rpartition(end)
        if not found:
            raise InvalidRequest(
                "The checkpoint's chat template cannot continue an assistant's message.",
                param="messages",
            )
        return self.segments(before, images, mark)

    def messages(self, system: str | None, turns: Sequence[Turn], mark: str) -> list[Message]:
        """In the form that the template takes. A system text that it would drop is in the first turn."""
        messages: list[Message] = []
        if system is not None and self.drops_system:
            turns = with_system(system, turns)
        elif system is not None:
            messages.append(self.message("system", (system,), mark))
        return messages + [self.message(turn.role, turn.parts, mark) for turn in turns]

    def answered(self, system: str | None, turns: Sequence[Turn]) -> list[Learnable]:
        """A whole conversation, and which of its segments are learned: an answer's and the token that ends it.

        Raises InvalidRequest, also if the template writes earlier messages otherwise when more follow.
        """
        mark, _ = unused_letters([system or "", *(turn.text for turn in turns)])
        messages = self.messages(system, turns, mark)
        asked = len(messages) - len(turns)
        images = iter([image for turn in turns for image in turn.images])
        text, found = "", []
        for place in range(asked, len(messages), 2):
            question, answer = self.write(messages[: place + 1]), self.write(messages[: place + 2], header=False)
            stop = min(self.ends(answer, len(question)), default=0)
            if not question.startswith(text) or not answer.startswith(question) or not stop:
                raise InvalidRequest("The checkpoint's chat template does not show where an answer begins and ends.")
            for piece, learned in ((question[len(text) :], False), (answer[len(question) : stop], True)):
                shown = [next(images) for part in split_specials(piece, self.specials) if part == IMAGE]
                found += [(segment, learned) for segment in self.segments(piece, shown, mark)]
            text = answer[:stop]
        return [*found, *((segment, False) for segment in self.segments(answer[stop:], [], mark))]

    def ends(self, text: str, start: int) -> Iterator[int]:
        """Where the first of each stop token ends in ``text``."""
        for stop in self.stop_tokens:
            place = text.find(stop, start)
            if place >= 0:
                yield place + len(stop)

    def message(self, role: str, parts: Sequence[str | int], mark: str) -> Message:
        """One message in the form that the template takes, with typed text marked."""
        if self.as_parts.get(role, True):
            return {"role": role, "content": [self.part(part, mark) for part in parts]}
        return {"role": role, "content": self.one_text(parts, mark)}

    def part(self, part: str | int, mark: str) -> Message:
        return {"type": "image"} if isinstance(part, int) else {"type": "text", "text": self.marked(part, mark)}

    def one_text(self, parts: Sequence[str | int], mark: str) -> str:
        """Images first, then the texts, for a template that does not know parts."""
        images = "".join(f"{IMAGE}\n" for part in parts if isinstance(part, int))
        return images + "\n".join(self.marked(part, mark) for part in parts if isinstance(part, str))

    def marked(self, typed: str, mark: str) -> str:
        """Typed text with marks, so that no special token can start or end in it or include it."""
        guarded = "".join(letter + mark if letter in self.starts else letter for letter in typed)
        return mark + guarded if self.could_continue(typed) else guarded

    def could_continue(self, typed: str) -> bool:
        """Whether ``typed`` is how a special token goes on that the template's own letters may have begun.

        Only then is its first letter guarded: a mark at the front of every text would be in the way of ``trim``.
        """
        tails = (special[cut:] for special in self.specials for cut in range(1, len(special)))
        return any(tail.startswith(typed) or typed.startswith(tail) for tail in tails) if typed else False

    def write(self, messages: Sequence[Message], header: bool = True) -> str:
        try:
            text = self.template.render(messages=messages, add_generation_prompt=header, **self.tokens)
            # A lone surrogate is no text that a tokenizer takes.
            return text.encode("utf-8", "replace").decode("utf-8")
        except InvalidRequest:
            raise
        except Exception as error:  # A template is a program from outside: it may fail in any way.
            raise InvalidRequest(
                "The checkpoint's chat template cannot write these messages down.", param="messages"
            ) from error

    def segments(self, text: str, images: Sequence[int], mark: str) -> list[Segment]:
        found: list[Segment] = []
        waiting = iter(images)
        for piece in split_specials(text, self.specials):
            if piece == IMAGE:
                image = next(waiting, None)
                if image is not None:
                    found.append(ImageSlot(image))
            elif piece in self.specials:
                found.append(SpecialToken(piece))
            else:
                found.append(piece.replace(mark, ""))
        if next(waiting, None) is not None:
            raise InvalidRequest(
                "The checkpoint's chat template has no place for an image in one of these messages.", param="messages"
            )
        return found

    # Tried once, at start-up

    def try_role(self, role: str, parts: bool) -> str:
        """What the template makes of a short conversation with PROBE as the content of ``role``; "" if it fails."""
        for neighbour in (parts, not parts):
            probe, hello = content(PROBE, parts), content("hello", neighbour)
            user = {"role": "user", "content": hello}
            asked = {"role": role, "content": probe}
            around = {"system": [asked, user], "user": [asked], "assistant": [user, asked, user]}
            try:
                text = self.write(around[role])
            except InvalidRequest:
                continue
            # A template that takes a list for a text prints it as Python does.
            if "'type'" not in text:
                return text
        return ""

    def wants_parts(self, role: str) -> bool:
        """Whether contents of ``role`` go in as a list of parts (the hub's habit) rather than as one text."""
        return PROBE in self.try_role(role, True) or PROBE not in self.try_role(role, False)

    def find_stops(self) -> tuple[str, ...]:
        """The special token that it writes after an answer."""
        after = self.try_role("assistant", self.as_parts["assistant"]).partition(PROBE)[2].lstrip()
        return tuple(special for special in self.specials if special != IMAGE and after.startswith(special))


def with_system(system: str, turns: Sequence[Turn]) -> list[Turn]:
    """The turns with the system text before the first message, for templates that would silently drop it."""
    first, *others = turns
    return [Turn(first.role, (f"{system}\n", *first.parts)), *others]


def unused_letters(texts: Sequence[str]) -> tuple[str, str]:
    """Two letters of private use that are in none of ``texts``."""
    used = set().union(*texts)
    free = [code for code in range(0xF0000, 0xF0000 + len(used) + 2) if chr(code) not in used and code < 0xFFFFE]
    if len(free) < 2:
        raise InvalidRequest("The messages use every private letter of Unicode: leave some out.", param="messages")
    return chr(free[0]), chr(free[1])


def refuse(message: str) -> None:
    """``raise_exception`` of chat templates."""
    raise InvalidRequest(
        "The checkpoint's chat template refuses these messages; their roles or their order do not suit it.",
        param="messages",
    )


def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """transformers' filter: Jinja's own would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def content(text: str, parts: bool) -> str | list[Message]:
    return [{"type": "text", "text": text}] if parts else text
