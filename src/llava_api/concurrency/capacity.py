"""What interactive requests leave of the engine, which is what batches may use."""

import time
from collections.abc import Callable
from typing import Protocol


def do_nothing() -> None:
    pass


class Visit(Protocol):
    """The stay of one request on the server."""

    def begin_answer(self) -> None:
        """The engine has given its first token."""

    def leave(self) -> None:
        """May be called more than once."""


class Capacity:
    """Counts the interactive requests. Use it only on the event loop.

    ``slots``: answers that the engine computes together. ``changed`` is called when the counts have.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting = 0
        """Requests without a token of their answer."""
        self.answering = 0
        self.idle_since = -float("inf")
        """By the monotonic clock; only of meaning while no request is there."""
        self.changed: Callable[[], None] = do_nothing

    @property
    def visitors(self) -> int:
        return self.waiting + self.answering

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self.visitors else time.monotonic() - self.idle_since

    def enter(self) -> Visit:
        self.waiting += 1
        self.changed()
        return InteractiveVisit(self)


class InteractiveVisit:
    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.waits = True
        self.here = True

    def begin_answer(self) -> None:
        if self.here and self.waits:
            self.waits = False
            self.capacity.waiting -= 1
            self.capacity.answering += 1
            self.capacity.changed()

    def leave(self) -> None:
        if self.here:
            self.begin_answer()
            self.here = False
            self.capacity.answering -= 1
            if not self.capacity.visitors:
                self.capacity.idle_since = time.monotonic()
            self.capacity.changed()
