"""How many requests are under way at once: more while the server answers, fewer when it refuses."""

import asyncio
import random
import time
from collections import deque

START = 8
CUT = 0.7
SHORTEST_WAIT_SECONDS = 0.05
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0


class Pace:
    """Additive increase and multiplicative decrease, as TCP finds the capacity of a network."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self.active = 0
        self.was_refused = False
        self.last_cut = -1.0
        self.wait = 0.0
        """Seconds of the last pause, if the server named none."""
        self.paused_until = 0.0
        self.newcomers: deque[asyncio.Future[None]] = deque()
        self.returning: deque[asyncio.Future[None]] = deque()
        """Requests that were refused. They go first, so that few are held in memory."""

    async def enter(self, *, again: bool = False) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self.returning if again else self.newcomers).append(turn)
        self.let_in()
        await turn

    def leave(self) -> None:
        self.active -= 1
        self.let_in()

    def let_in(self) -> None:
        if time.monotonic() < self.paused_until:
            return
        while self.active < int(self.limit) and (self.returning or self.newcomers):
            turn = (self.returning or self.newcomers).popleft()
            if not turn.cancelled():
                self.active += 1
                turn.set_result(None)

    def answered(self) -> None:
        self.wait = 0.0
        # A limit that is not used shows nothing about the server.
        if self.active >= int(self.limit):
            self.limit = min(self.most, self.limit + (1 / self.limit if self.was_refused else 1))

    def refused(self, sent_at: float, retry_after: float | None) -> None:
        """For a request sent at ``sent_at`` of the monotonic clock. Nothing is sent before the pause is over."""
        now = time.monotonic()
        if sent_at > self.last_cut:
            # Once for all that were under way together.
            self.limit = max(1.0, self.limit * CUT)
            self.last_cut = now
            self.was_refused = True
            self.wait = min(LONGEST_WAIT_SECONDS, max(FIRST_WAIT_SECONDS, self.wait * 2))
        # Many clients that were refused together must not come back together.
        seconds = (self.wait if retry_after is None else max(retry_after, SHORTEST_WAIT_SECONDS)) * random.uniform(
            1, 1.2
        )
        if now + seconds > self.paused_until:
            self.paused_until = now + seconds
            asyncio.get_running_loop().call_later(seconds + 0.001, self.let_in)
