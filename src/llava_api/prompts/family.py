"""The type of a prompt family: the conversation format that a checkpoint was trained on, as data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.prompts.segments import ImageSlot, Learnable, Segment, SpecialToken, Turn, split_specials

SLOT = re.compile(r"\{(system|user|assistant)\}")
ANSWER = "{assistant}"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"
"""What checkpoints with ``mm_use_im_start_end`` have around each image."""


@dataclass(frozen=True, slots=True)
class PromptFamily:
    """One conversation format. ``{system}``, ``{user}`` and ``{assistant}`` are the only slots.

    A prompt is ``system``, then ``user`` (and ``assistant``, for answered turns) once for each turn. A message with
    k images is k times ``<image>`` and a newline before its text, wherever the image parts were: LLaVA's training does
    this for both speakers (``preprocess_multimodal`` in ``train.py``).
    """

    name: str
    default_system: str
    """Used when the caller gives no system message; empty for none."""
    system: str
    user: str
    """From the start of the user's turn to where the model begins to write."""
    assistant: str
    """An earlier answer, up to the start of the next user turn."""
    header: str
    """The end of ``user``, which says that the assistant is next."""
    specials: tuple[str, ...]
    """Texts in these templates that are special tokens if the tokenizer knows them."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, besides the tokenizer's own end token."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end an answer, for families whose separator is ordinary text."""
    system_in_first_user: bool = False
    """Whether the system text is inside the first user turn."""
    image_markers: bool = False
    """Whether each image is between ``<im_start>`` and ``<im_end>`` (``mm_use_im_start_end``)."""

    def layout(self, system: str | None, turns: Sequence[Turn], header: bool = True) -> list[Segment]:
        """The whole prompt, up to where the model begins to write; without ``header``, up to the assistant's header.

        If the last turn is an assistant's, the model continues its text.
        """
        return [segment for part in self.parts(system, turns, header) for segment in part]

    def parts(
        self, system: str | None, turns: Sequence[Turn], header: bool = True, complete: bool = False
    ) -> list[list[Segment]]:
        """The system text, which may be empty, and each turn. ``complete``: an assistant's last turn is whole."""
        system_text = self.default_system if system is None else system
        head = self.fill(self.system, system=[system_text]) if system_text else []
        parts: list[list[Segment]] = [[] if self.system_in_first_user else list(head)]
        last = len(turns) - 1
        for position, turn in enumerate(turns):
            content = [segment for image in turn.images for segment in self.image(image)]
            content.append(turn.text)
            if turn.role == "assistant":
                # Continued: only what is before and in the slot.
                whole = complete or position < last
                template = self.assistant if whole else self.assistant.partition(ANSWER)[0] + ANSWER
                parts.append(self.fill(template, assistant=content))
                continue
            if position == 0 and self.system_in_first_user:
                content = [*head, *content]
            template = self.user if header or position < last else self.user.removesuffix(self.header)
            parts.append(self.fill(template, user=content))
        return parts

    def answered(self, system: str | None, turns: Sequence[Turn]) -> list[Learnable]:
        """A whole conversation, and which of its segments are learned in training.

        Those are an answer's and the token that ends it, as in LLaVA's ``preprocess_v1`` and its siblings.
        """
        first, *parts = self.parts(system, turns, complete=True)
        segments: list[Learnable] = [(segment, False) for segment in first]
        for turn, part in zip(turns, parts, strict=True):
            stops = [place for place, segment in enumerate(part) if self.stops(segment)]
            last = stops[-1] if turn.role == "assistant" else -1
            segments += [(segment, place <= last) for place, segment in enumerate(part)]
        return segments

    def stops(self, segment: Segment) -> bool:
        return isinstance(segment, SpecialToken) and segment.text in self.stop_tokens

    def image(self, image: int) -> list[Segment]:
        """One image and the newline after it."""
        if self.image_markers:
            return [SpecialToken(IMAGE_START), ImageSlot(image), SpecialToken(IMAGE_END), "\n"]
        return [ImageSlot(image), "\n"]

    def fill(self, template: str, **slots: list[Segment]) -> list[Segment]:
        """A template's segments with its slots filled. Only template text is searched for special tokens."""
        segments: list[Segment] = []
        for position, piece in enumerate(SLOT.split(template)):
            if position % 2:
                segments.extend(slots[piece])
                continue
            for inner in split_specials(piece, self.specials):
                segments.append(SpecialToken(inner) if inner in self.specials else inner)
        return segments
