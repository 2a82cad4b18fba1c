"""From a question to its answer: what the page does between a click and the last word. Independent of Gradio."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava_api.cli.api_client import ApiClient, ApiFailed
from llava_api.cli.conversation import Message, Sampling
from llava_api.cli.ui import panel
from llava_api.cli.ui.open_pages import AttachedImage, ImageLimits, OpenPage, Turn
from llava_api.cli.ui.uploads import Uploads
from llava_api.errors import BadImage

PANEL_SECONDS = 30
"""Longest wait for the panel after the answer is complete."""
BUSY = "An answer is in progress: stop it first, or wait until it ends."
NO_QUESTION = "Write a question first."
UPLOAD_GONE = "An image waited for too long and was deleted: remove it, and add it again."
STOPPED = "Stopped."
CUT = "Cut here: the answer had as many tokens as Settings allow."


@dataclass(frozen=True, slots=True)
class PageSettings:
    """The fields under Settings."""

    model: str
    """Empty if the page found no server when it was opened."""
    temperature: float
    max_tokens: int
    system: str
    key: str


@dataclass(frozen=True, slots=True)
class Update:
    """What changes on the page besides the conversation; None changes nothing."""

    box: str | None = None
    """New text of the question's box, whose images are removed."""
    status: str | None = ""
    """A problem to show; empty removes the last one."""
    panel: str | None = None
    busy: bool = False
    """Whether an answer can be stopped."""


Updates = AsyncGenerator[Update, None]


class Refused(Exception):
    """The question is not asked; the message is for the person at the page."""


class Answering:
    def __init__(self, api: ApiClient, uploads: Uploads, limits: ImageLimits) -> None:
        self.api = api
        self.uploads = uploads
        self.limits = limits

    def ask(self, page: OpenPage, text: str, paths: Sequence[str], settings: PageSettings) -> Updates:
        """Ask a new question with the uploaded files at ``paths``. If anything is wrong, nothing changes."""
        return self.answer(page, lambda: self.add_turn(page, text, self.uploads_at(paths), settings), box="")

    def ask_with(self, page: OpenPage, text: str, image: bytes, settings: PageSettings) -> Updates:
        """Ask a new question with an image that was not uploaded."""
        return self.answer(page, lambda: self.add_turn(page, text, [image], settings), box="")

    def ask_again(self, page: OpenPage, number: int | None, settings: PageSettings, text: str | None = None) -> Updates:
        """Ask turn ``number`` again, perhaps with another ``text``; all later turns are forgotten."""

        async def go_back() -> PageSettings:
            if page.answering is not None:
                raise Refused(BUSY)
            if number is None:
                raise Refused("")
            if text is not None and not text.strip():
                raise Refused(NO_QUESTION)
            complete = await self.with_model(settings)
            page.back_to(number)
            if text is not None:
                page.turns[number].text = text
            return complete

        return self.answer(page, go_back)

    def uploads_at(self, paths: Sequence[str]) -> list[Path]:
        """Raises Refused."""
        files = [file for file in map(self.uploads.find, paths) if file is not None]
        if len(files) < len(paths):
            raise Refused(UPLOAD_GONE)
        return files

    async def add_turn(
        self, page: OpenPage, text: str, files: Sequence[Path | bytes], settings: PageSettings
    ) -> PageSettings:
        """Add a question to the conversation, and delete those of its ``files`` that are on the disk.

        Raises Refused and ApiFailed.
        """
        if page.answering is not None:
            raise Refused(BUSY)
        if not text.strip():
            raise Refused(NO_QUESTION)
        data = [file if isinstance(file, bytes) else file.read_bytes() for file in files]
        settings = await self.with_model(settings)
        earlier = [image for turn in page.turns for image in turn.images]
        try:
            images = await asyncio.to_thread(self.limits.read, data, earlier)
        except BadImage as error:
            raise Refused(error.message) from error
        for file in files:
            if isinstance(file, Path):
                self.uploads.drop(file)
        page.turns.append(Turn(text, images))
        return settings

    async def with_model(self, settings: PageSettings) -> PageSettings:
        """With the server's first model if there is none: the server was started after the page. Raises ApiFailed."""
        if settings.model:
            return settings
        return replace(settings, model=(await self.api.with_key(settings.key).models())[0])

    async def answer(
        self, page: OpenPage, prepare: Callable[[], Awaitable[PageSettings]], box: str | None = None
    ) -> Updates:
        """Answer the page's last turn, which ``prepare`` has added or changed."""
        try:
            settings = await prepare()
        except (Refused, ApiFailed) as refusal:
            yield Update(status=str(refusal), busy=page.answering is not None)
            return
        turn, messages = page.turns[-1], page.conversation(settings.system).messages()
        changed = asyncio.Event()
        page.was_stopped = False
        # A task, so that it can be stopped at whatever it waits for.
        answering = page.answering = asyncio.create_task(self.receive(turn, settings, messages, changed))
        answering.add_done_callback(lambda _: changed.set())
        explaining = asyncio.create_task(self.explain(page.sent_images(), settings, messages))
        try:
            yield Update(box=box, busy=True)
            while True:
                # One update for all text that has arrived since the last, so that a slow page does not fall behind.
                await changed.wait()
                changed.clear()
                if answering.done():
                    break
                # A problem that was shown meanwhile, such as BUSY, remains.
                yield Update(status=None, busy=True)
            if page.was_stopped:
                turn.note = STOPPED
            page.answering = None
            if not explaining.done():
                yield Update()
            yield Update(panel=await asyncio.wait_for(explaining, PANEL_SECONDS))
        except TimeoutError:
            yield Update(panel=panel.problem("The server took too long to say what the model saw."))
        finally:
            for task in (answering, explaining):
                task.cancel()
            # Wait for them, so that the connections are closed when this generator is.
            await asyncio.gather(answering, explaining, return_exceptions=True)
            if page.answering is answering:
                page.answering = None

    async def receive(
        self, turn: Turn, settings: PageSettings, messages: Sequence[Message], changed: asyncio.Event
    ) -> None:
        sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
        try:
            async with self.api.with_key(settings.key).ask(settings.model, messages, sampling) as answer:
                async for text in answer:
                    turn.answer += text
                    changed.set()
                if answer.finish_reason == "length":
                    turn.note = CUT
        except ApiFailed as failure:
            turn.error = str(failure)

    async def explain(
        self, images: Sequence[AttachedImage], settings: PageSettings, messages: Sequence[Message]
    ) -> str:
        """The panel's HTML."""
        try:
            explanation = await self.api.with_key(settings.key).explain(settings.model, messages)
        except ApiFailed as failure:
            return panel.problem(str(failure))
        return panel.panel(explanation, images)
