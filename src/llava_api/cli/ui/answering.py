"""From a question to its answer: what the page does between a click and the last word. Knows nothing of Gradio."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_api.cli.ui import panel
from llava_api.cli.ui.client import Api, Knobs, Piece, Trouble
from llava_api.cli.ui.conversation import Conversation, PictureLimits, Turn
from llava_api.cli.ui.sessions import Session
from llava_api.cli.ui.uploads import Uploads
from llava_api.errors import BadImage

PANEL_SECONDS = 30
"""Longest wait for the panel once the answer is there."""
BUSY = "An answer is under way: stop it first, or wait for its end."
NO_QUESTION = "Write a question first."
NO_MODEL = "The server names no model: write one under Settings."
GONE = "A picture was waiting for too long and is not here any more: remove it, and add it again."
STOPPED = "Stopped."
CUT = "Cut here: the answer had as many tokens as Settings allow."


@dataclass(frozen=True, slots=True)
class Update:
    """What changes on the page, besides the conversation; None leaves it."""

    box: str | None = None
    """What stands in the box from now on, without pictures."""
    status: str | None = ""
    """A complaint; empty takes the last one away."""
    panel: str | None = None
    busy: bool = False
    """Whether there is something to stop."""


Updates = AsyncGenerator[Update, None]


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer's end."""

    error: str = ""


class Answering:
    def __init__(self, api: Api, uploads: Uploads, limits: PictureLimits) -> None:
        self.api = api
        self.uploads = uploads
        self.limits = limits

    async def ask(self, session: Session, text: str, paths: Sequence[str], knobs: Knobs) -> Updates:
        """With the uploaded files at ``paths``; whatever is wrong with them leaves all as it is."""
        found = [self.uploads.find(path) for path in paths]
        files = [path for path in found if path is not None]
        if len(files) < len(found):
            yield Update(status=GONE, busy=session.answering is not None)
            return
        async with aclosing(
            self.ask_with(session, text, [path.read_bytes() for path in files], knobs, files)
        ) as updates:
            async for update in updates:
                yield update

    async def ask_with(
        self, session: Session, text: str, files: Sequence[bytes], knobs: Knobs, sources: Sequence[Path] = ()
    ) -> Updates:
        """With pictures whose files are known; ``sources`` are deleted once they are part of the conversation."""
        wrong = BUSY if session.answering is not None else NO_QUESTION if not text.strip() else ""
        if wrong:
            yield Update(status=wrong, busy=session.answering is not None)
            return
        try:
            knobs = await self.with_model(knobs)
        except Trouble as trouble:
            yield Update(status=str(trouble))
            return
        conversation = session.conversation
        earlier = [picture for turn in conversation.turns for picture in turn.pictures]
        try:
            pictures = await asyncio.to_thread(self.limits.read, files, earlier)
        except BadImage as error:
            yield Update(status=error.message)
            return
        for source in sources:
            self.uploads.drop(source)
        conversation.turns.append(Turn(text, pictures))
        async with aclosing(self.answer(session, knobs, box="")) as updates:
            async for update in updates:
                yield update

    async def with_model(self, knobs: Knobs) -> Knobs:
        """With the first model, where the page found none: the server was started later. Raises Trouble."""
        if knobs.model:
            return knobs
        names = await self.api.models(knobs.key)
        if not names:
            raise Trouble(NO_MODEL)
        return replace(knobs, model=names[0])

    async def ask_again(self, session: Session, number: int | None, knobs: Knobs, text: str | None = None) -> Updates:
        """Turn ``number`` once more, perhaps with another ``text``; what came after it is forgotten."""
        if session.answering is not None:
            yield Update(status=BUSY, busy=True)
            return
        if number is None or (text is not None and not text.strip()):
            yield Update(status="" if number is None else NO_QUESTION)
            return
        try:
            knobs = await self.with_model(knobs)
        except Trouble as trouble:
            yield Update(status=str(trouble))
            return
        session.conversation.back_to(number)
        if text is not None:
            session.conversation.turns[number].text = text
        async with aclosing(self.answer(session, knobs)) as updates:
            async for update in updates:
                yield update

    async def answer(self, session: Session, knobs: Knobs, box: str | None = None) -> Updates:
        """The last turn's answer, as it comes."""
        turn = session.conversation.turns[-1]
        messages = session.conversation.messages(knobs.system)
        news: asyncio.Queue[Piece | Ended] = asyncio.Queue()
        session.stopped = False
        asking = session.answering = asyncio.create_task(self.pump(news, knobs, messages))
        seeing = asyncio.create_task(self.see(session.conversation, knobs, messages))
        told = False
        try:
            yield Update(box=box, busy=True)
            while not told:
                for new in await all_of(news):
                    told = told or isinstance(new, Ended)
                    note(turn, new)
                if told:
                    break
                # A complaint that came meanwhile, such as BUSY, is to be read.
                yield Update(status=None, busy=True)
            if session.stopped:
                turn.note = STOPPED
            session.answering = None
            seen = seeing.done()
            yield Update(panel=seeing.result() if seen else None)
            if not seen:
                yield Update(panel=await asyncio.wait_for(seeing, PANEL_SECONDS))
        except TimeoutError:
            yield Update(panel=panel.trouble("The server took too long to say what the model saw."))
        finally:
            for task in (asking, seeing):
                task.cancel()
            # Now, so that the connection is closed when this is.
            await asyncio.gather(asking, seeing, return_exceptions=True)
            if session.answering is asking:
                session.answering = None

    async def pump(self, news: "asyncio.Queue[Piece | Ended]", knobs: Knobs, messages: list[dict[str, Any]]) -> None:
        """A task of its own, so that it can be stopped at whatever it waits for."""
        error = ""
        try:
            async with aclosing(self.api.answer(knobs, messages)) as pieces:
                async for piece in pieces:
                    news.put_nowait(piece)
        except Trouble as trouble:
            error = str(trouble)
        finally:
            news.put_nowait(Ended(error))

    async def see(self, conversation: Conversation, knobs: Knobs, messages: list[dict[str, Any]]) -> str:
        """The panel's HTML."""
        pictures = conversation.pictures()
        try:
            return panel.panel(await self.api.explain(knobs, messages), pictures)
        except Trouble as trouble:
            return panel.trouble(str(trouble))


async def all_of(news: "asyncio.Queue[Piece | Ended]") -> list[Piece | Ended]:
    """At least one; and whatever else has come by now, so that a slow page falls not behind."""
    found = [await news.get()]
    with suppress(asyncio.QueueEmpty):
        while True:
            found.append(news.get_nowait())
    return found


def note(turn: Turn, new: Piece | Ended) -> None:
    if isinstance(new, Ended):
        turn.error = new.error
        return
    turn.answer += new.text
    if new.cut:
        turn.note = CUT
