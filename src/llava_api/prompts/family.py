"""What a prompt family is: the conversation form that a checkpoint was trained on, as data, and how it is filled."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llava_api.prompts.segments import Picture, Segment, Special, Turn, split_specials

SLOT = re.compile(r"\{(system|user|assistant)\}")
ANSWER = "{assistant}"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
"""What checkpoints with ``mm_use_im_start_end`` have around each picture."""


class PromptForm(Protocol):
    """A way to write a conversation down: a ``PromptFamily``, or a checkpoint's own chat template."""

    @property
    def name(self) -> str: ...

    @property
    def default_system(self) -> str:
        """Its system text where the caller gives none; empty for none."""
        ...

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Tokens that end an answer, besides the tokenizer's own end token."""
        ...

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end an answer, for families whose separator is ordinary text."""
        ...

    @property
    def specials(self) -> tuple[str, ...]:
        """Texts that its templates mean as special tokens."""
        ...

    def layout(self, system: str | None, turns: Sequence[Turn]) -> list[Segment]:
        """The whole prompt up to where the model begins to write.

        Where the last turn is an assistant's, that is behind its text: the model continues it.
        """
        ...


@dataclass(frozen=True, slots=True)
class PromptFamily:
    """One conversation form. ``{system}``, ``{user}`` and ``{assistant}`` are the only slots.

    A prompt is ``system``, then ``user`` (and ``assistant``, for answered turns) once a turn. A message with k
    pictures is k times ``<image>`` and a newline before its text, wherever the image parts stood.
    """

    name: str
    default_system: str
    """Used when the caller gives no system message; empty for none."""
    system: str
    user: str
    """From the start of the user's turn to where the model begins to write."""
    assistant: str
    """An earlier answer, up to where the next user turn starts."""
    specials: tuple[str, ...]
    """Texts in these templates that are special tokens where the tokenizer knows them."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, besides the tokenizer's own end token."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end an answer, for families whose separator is ordinary text."""
    system_in_first_user: bool = False
    """True where the system text stands inside the first user turn."""
    image_markers: bool = False
    """True where each picture stands between ``<im_start>`` and ``<im_end>`` (``mm_use_im_start_end``)."""

    def layout(self, system: str | None, turns: Sequence[Turn]) -> list[Segment]:
        """The whole prompt as segments. See ``PromptForm.layout``."""
        system_text = self.default_system if system is None else system
        head = self.fill(self.system, system=[system_text]) if system_text else []
        segments: list[Segment] = [] if self.system_in_first_user else list(head)
        first = True
        last = len(turns) - 1
        for position, turn in enumerate(turns):
            if turn.role == "assistant":
                # Continued: only what stands before and in the slot.
                template = self.assistant if position < last else self.assistant.partition(ANSWER)[0] + ANSWER
                segments += self.fill(template, assistant=[turn.text])
                continue
            content: list[Segment] = list(head) if first and self.system_in_first_user else []
            first = False
            for image in turn.images:
                content += self.picture(image)
            content.append(turn.text)
            segments += self.fill(self.user, user=content)
        return segments

    def picture(self, image: int) -> list[Segment]:
        """One picture and the newline after it."""
        if self.image_markers:
            return [Special(IMAGE_START), Picture(image), Special(IMAGE_END), "\n"]
        return [Picture(image), "\n"]

    def fill(self, template: str, **slots: list[Segment]) -> list[Segment]:
        """A template's segments, its slots replaced; only template text is searched for special tokens."""
        segments: list[Segment] = []
        for position, piece in enumerate(SLOT.split(template)):
            if position % 2:
                segments.extend(slots[piece])
                continue
            for inner in split_specials(piece, self.specials):
                segments.append(Special(inner) if inner in self.specials else inner)
        return segments
