"""The pages that are open in browsers: a conversation for each, only in memory, forgotten after the page was closed."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llava_api.cli.conversation import Conversation, data_url
from llava_api.errors import BadImage
from llava_api.images.decode import Limits
from llava_api.images.previews import Thumbnail, thumbnail_of
from llava_api.settings import Settings
from llava_api.units import readable_size

GRACE_SECONDS = 120
"""From the closing of a page until it is forgotten: a network that fails for a moment closes nothing."""
MAX_PAGES = 1000
MAX_BYTES = 1_000_000_000
"""Of all conversations together: a program could begin one after the other."""


@dataclass(frozen=True, slots=True)
class AttachedImage:
    data: bytes
    """The file as it was added."""
    thumbnail: Thumbnail

    def url(self) -> str:
        return data_url(self.data, f"image/{self.thumbnail.format.lower()}")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The server's limits, checked here so that an image it would refuse is refused before it is sent."""

    one_bytes: int
    all_bytes: int
    count: int
    header: Limits

    @classmethod
    def from_settings(cls, settings: Settings) -> "ImageLimits":
        return cls(
            settings.max_image_bytes,
            settings.max_request_image_bytes,
            settings.max_images_per_request,
            Limits.from_settings(settings),
        )

    def read(self, files: Sequence[bytes], earlier: Sequence[AttachedImage]) -> tuple[AttachedImage, ...]:
        """Images for a turn of a conversation that has the ``earlier`` ones. Raises BadImage with a message to show."""
        if len(earlier) + len(files) > self.count:
            raise BadImage(
                f"A conversation may have {self.count} images, these would be {len(earlier) + len(files)}: start a "
                "new one, or add fewer."
            )
        if sum(map(len, files)) + sum(len(image.data) for image in earlier) > self.all_bytes:
            raise BadImage(
                f"The conversation's images are larger than {readable_size(self.all_bytes)} together: start a new "
                "one, or add smaller files."
            )
        return tuple(self.read_one(data, number, len(files)) for number, data in enumerate(files, start=1))

    def read_one(self, data: bytes, number: int, count: int) -> AttachedImage:
        place = f"Image {number}: " if count > 1 else ""
        if len(data) > self.one_bytes:
            raise BadImage(f"{place}The file is larger than {readable_size(self.one_bytes)}: scale the image down.")
        try:
            return AttachedImage(data, thumbnail_of(data, self.header))
        except BadImage as error:
            raise BadImage(f"{place}{error.message}") from error


@dataclass(slots=True)
class Turn:
    """A question and its answer."""

    text: str
    images: tuple[AttachedImage, ...] = ()
    answer: str = ""
    error: str = ""
    """Why there is no answer, or only a part of one."""
    note: str = ""
    """That the answer was stopped or cut."""

    def size_bytes(self) -> int:
        """About what it takes in memory."""
        images = sum(len(image.data) + len(image.thumbnail.url) for image in self.images)
        return images + len(self.text) + len(self.answer)


@dataclass(slots=True, eq=False)
class OpenPage:
    turns: list[Turn] = field(default_factory=list)
    answering: "asyncio.Task[None] | None" = None
    """The task that receives an answer now."""
    was_stopped: bool = False
    """Whether the person stopped that answer."""
    closed_at: float | None = None

    def conversation(self, system: str) -> Conversation:
        """What is sent for the answer to the last turn."""
        conversation = Conversation(system if system.strip() else None)
        for turn in self.sent_turns():
            conversation = conversation.asked(turn.text, [image.url() for image in turn.images])
            if turn is not self.turns[-1]:
                conversation = conversation.answered(turn.answer)
        return conversation

    def sent_turns(self) -> list[Turn]:
        """Without earlier questions that got no answer."""
        return [turn for turn in self.turns[:-1] if turn.answer] + self.turns[-1:]

    def sent_images(self) -> list[AttachedImage]:
        return [image for turn in self.sent_turns() for image in turn.images]

    def size_bytes(self) -> int:
        return sum(turn.size_bytes() for turn in self.turns)

    def back_to(self, number: int) -> None:
        """Forget the answer to turn ``number`` and all later turns."""
        del self.turns[number + 1 :]
        turn = self.turns[number]
        turn.answer = turn.error = turn.note = ""

    def stop(self) -> None:
        if self.answering is not None:
            self.was_stopped = True
            self.answering.cancel()


class OpenPages:
    def __init__(self, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_BYTES) -> None:
        self.clock = clock
        self.max_bytes = max_bytes
        self.pages: dict[str, OpenPage] = {}
        """The page that was used last comes last."""

    def get(self, name: str) -> OpenPage:
        """The page that its browser calls ``name``, a new one if there is none."""
        page = self.pages.pop(name, None) or OpenPage()
        page.closed_at = None
        self.pages[name] = page
        self.make_room(page)
        return page

    def make_room(self, kept: OpenPage) -> None:
        """Forget the pages that were used longest ago while there are too many, but never ``kept``."""
        size = sum(page.size_bytes() for page in self.pages.values())
        while len(self.pages) > MAX_PAGES or size > self.max_bytes:
            name, oldest = next(iter(self.pages.items()))
            if oldest is kept:
                return
            size -= oldest.size_bytes()
            oldest.stop()
            del self.pages[name]

    def close(self, name: str) -> None:
        """The page was closed: stop its answer."""
        page = self.pages.get(name)
        if page is not None:
            page.closed_at = self.clock()
            page.stop()

    def forget_closed(self) -> list[str]:
        """Return the names of the pages that were forgotten."""
        before = self.clock() - GRACE_SECONDS
        names = [name for name, page in self.pages.items() if page.closed_at is not None and page.closed_at <= before]
        for name in names:
            del self.pages[name]
        return names
