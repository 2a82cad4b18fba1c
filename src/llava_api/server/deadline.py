"""A deadline that is moved often and passes seldom: moving it costs no timer."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls ``on_late`` when the time has passed. The timer is left as it is where it only comes too early."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_late: Callable[[], None]) -> None:
        self.loop = loop
        self.on_late = on_late
        self.when: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float | None) -> None:
        """From now; None where there is nothing to wait for."""
        self.when = None if seconds is None else self.loop.time() + seconds
        if self.when is not None and (self.timer is None or self.timer.when() > self.when):
            self.arm(self.when)

    def arm(self, when: float) -> None:
        self.cancel_timer()
        self.timer = self.loop.call_at(when, self.on_timer)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def on_timer(self) -> None:
        self.timer = None
        if self.when is not None and self.loop.time() < self.when:
            self.arm(self.when)
        elif self.when is not None:
            self.when = None
            self.on_late()
