"""Who talks about what: one conversation for each open page, in memory alone, forgotten after the page was closed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llava_api.cli.ui.conversation import Conversation

GRACE_SECONDS = 120
"""Between a page's closing and forgetting: a network that fails for a moment closes nothing."""
MOST_SESSIONS = 1000
MOST_BYTES = 1_000_000_000
"""Of all conversations together: a program can begin one after the other and close none."""


@dataclass(slots=True, eq=False)
class Session:
    conversation: Conversation = field(default_factory=Conversation)
    answering: "asyncio.Task[None] | None" = None
    """What asks the server at this moment."""
    stopped: bool = False
    """Whether the person stopped the answer that is under way."""
    closed_at: float | None = None

    def stop(self) -> None:
        if self.answering is not None:
            self.stopped = True
            self.answering.cancel()


class Sessions:
    def __init__(self, clock: Callable[[], float] = time.monotonic, most_bytes: int = MOST_BYTES) -> None:
        self.clock = clock
        self.most_bytes = most_bytes
        self.open: dict[str, Session] = {}

    def get(self, name: str) -> Session:
        """The session that a browser calls ``name``; a new one where there is none."""
        session = self.open.pop(name, None) or Session()
        session.closed_at = None
        self.open[name] = session
        self.make_room(session)
        return session

    def make_room(self, kept: Session) -> None:
        """The one that was used longest ago goes first; never ``kept``, which was used last."""
        taken = sum(session.conversation.size_bytes() for session in self.open.values())
        while len(self.open) > MOST_SESSIONS or taken > self.most_bytes:
            name, oldest = next(iter(self.open.items()))
            if oldest is kept:
                return
            taken -= oldest.conversation.size_bytes()
            oldest.stop()
            del self.open[name]

    def close(self, name: str) -> None:
        """The page is gone; an answer that nobody reads any more is stopped."""
        session = self.open.get(name)
        if session is not None:
            session.closed_at = self.clock()
            session.stop()

    def forget_closed(self) -> list[str]:
        """The names of those that are gone now."""
        now = self.clock()
        gone = [
            name
            for name, session in self.open.items()
            if session.closed_at is not None and now - session.closed_at >= GRACE_SECONDS
        ]
        for name in gone:
            del self.open[name]
        return gone
