"""What was said so far on one open page: turns, and the messages that the API takes. It is never written to a disk."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_api.errors import BadImage
from llava_api.images.decode import Limits
from llava_api.images.thumbnail import Thumbnail, thumbnail_of
from llava_api.settings import Settings


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes
    """The file, as it was added."""
    thumbnail: Thumbnail

    def url(self) -> str:
        return f"data:image/{self.thumbnail.format.lower()};base64,{base64.b64encode(self.data).decode()}"


@dataclass(slots=True)
class Turn:
    """A question, and what became of it."""

    text: str
    pictures: tuple[Picture, ...] = ()
    answer: str = ""
    error: str = ""
    """Why there is no answer, or no whole one."""
    note: str = ""
    """What is to be known about the answer: that it was stopped, or cut."""

    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        pictures = sum(len(picture.data) + len(picture.thumbnail.url) for picture in self.pictures)
        return pictures + len(self.text) + len(self.answer)

    def ask_again(self) -> None:
        self.answer = self.error = self.note = ""

    def content(self) -> str | list[dict[str, Any]]:
        """Pictures first, as LLaVA was trained."""
        if not self.pictures:
            return self.text
        shown = [{"type": "image_url", "image_url": {"url": picture.url()}} for picture in self.pictures]
        return [*shown, {"type": "text", "text": self.text}]


@dataclass(slots=True)
class Conversation:
    turns: list[Turn] = field(default_factory=list)

    def messages(self, system: str) -> list[dict[str, Any]]:
        """For the answer to the last turn; questions before it that got no answer are left out."""
        found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
        for turn in self.turns[:-1]:
            if turn.answer:
                found.append({"role": "user", "content": turn.content()})
                found.append({"role": "assistant", "content": turn.answer})
        return [*found, *({"role": "user", "content": turn.content()} for turn in self.turns[-1:])]

    def pictures(self) -> list[Picture]:
        """Those of ``messages``, in the same order."""
        asked = [turn for turn in self.turns[:-1] if turn.answer] + self.turns[-1:]
        return [picture for turn in asked for picture in turn.pictures]

    def size_bytes(self) -> int:
        return sum(turn.size_bytes() for turn in self.turns)

    def back_to(self, number: int) -> None:
        """Forget what came after turn ``number``, and its answer."""
        del self.turns[number + 1 :]
        self.turns[number].ask_again()


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """As the server has them, so that what it would refuse is told before it is sent."""

    one_bytes: int
    all_bytes: int
    count: int
    limits: Limits

    @classmethod
    def of(cls, settings: Settings) -> "PictureLimits":
        limits = Limits(settings.max_image_pixels, settings.max_image_side, settings.max_image_aspect_ratio)
        return cls(settings.max_image_bytes, settings.max_request_image_bytes, settings.max_images_per_request, limits)

    def read(self, files: Sequence[bytes], earlier: Sequence[Picture]) -> tuple[Picture, ...]:
        """Pictures for a turn in a conversation that has the ``earlier`` ones.

        Raises BadImage, with a message for the person who added them.
        """
        if len(earlier) + len(files) > self.count:
            raise BadImage(
                f"A conversation may have {self.count} pictures, these would be {len(earlier) + len(files)}: begin a "
                "new one, or add fewer."
            )
        if sum(map(len, files)) + sum(len(picture.data) for picture in earlier) > self.all_bytes:
            raise BadImage(
                f"The conversation's pictures are larger than {megabytes(self.all_bytes)} together: begin a new one, "
                "or add smaller files."
            )
        return tuple(self.read_one(data, number, len(files)) for number, data in enumerate(files, start=1))

    def read_one(self, data: bytes, number: int, of: int) -> Picture:
        place = f"Picture {number}: " if of > 1 else ""
        if len(data) > self.one_bytes:
            raise BadImage(f"{place}The file is larger than {megabytes(self.one_bytes)}: scale the picture down.")
        try:
            return Picture(data, thumbnail_of(data, self.limits))
        except BadImage as error:
            raise BadImage(f"{place}{error.message}") from error


def megabytes(count: int) -> str:
    return f"{count / 1_000_000:g} MB" if count >= 10_000 else f"{count} bytes"
