"""A bounded, fair queue in front of the engine: callers take turns, however many requests each has waiting.

The engine serves in the order in which it is asked. So it is asked for no more than it computes at once, and who is
next is decided here: a caller with one request waits for one turn, not behind another caller's five hundred.
"""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass

from llava_api.errors import Busy

FULL = "The server is busy and its queue is full: try again in a moment."
TOO_LONG = "The server is busy: your request waited too long for its turn. Try again in a moment."


@dataclass(frozen=True, slots=True)
class Waiting:
    turn: "asyncio.Future[None]"
    cost: int
    """Answers that it asks for at once."""


class Admission:
    """``slots``: answers that are made at once. ``most_waiting``: requests in the queue, of all callers together."""

    def __init__(self, slots: int, most_waiting: int, timeout_seconds: float) -> None:
        self.slots = slots
        self.most_waiting = most_waiting
        self.timeout_seconds = timeout_seconds
        self.running = 0
        """Slots that are taken."""
        self.queues: OrderedDict[str, deque[Waiting]] = OrderedDict()
        """Callers in the order of their turns; none without a request."""

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))

    async def enter(self, caller: str, cost: int) -> "Slot":
        """A slot when it is the caller's turn. Raises Busy."""
        cost = min(cost, self.slots)
        if not self.queues and self.running + cost <= self.slots:
            self.running += cost
            return Slot(self, cost)
        if self.waiting >= self.most_waiting:
            raise Busy(FULL, code="queue_full")
        entry = Waiting(asyncio.get_running_loop().create_future(), cost)
        self.queues.setdefault(caller, deque()).append(entry)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await entry.turn
        except BaseException as error:
            self.leave(caller, entry)
            if isinstance(error, TimeoutError):
                raise Busy(TOO_LONG, code="queue_timeout") from error
            raise
        return Slot(self, cost)

    def leave(self, caller: str, entry: Waiting) -> None:
        """Nobody waits for this turn any more; where it had come already, it is given back."""
        if entry.turn.done() and not entry.turn.cancelled():
            self.give_back(entry.cost)
            return
        queue = self.queues.get(caller)
        if queue is not None and entry in queue:
            queue.remove(entry)
            if not queue:
                del self.queues[caller]
        self.next_turns()

    def give_back(self, cost: int) -> None:
        self.running -= cost
        self.next_turns()

    def next_turns(self) -> None:
        """The first caller's oldest request, as long as there is room for it; then it is the next caller's turn."""
        while self.queues:
            caller, queue = next(iter(self.queues.items()))
            entry = queue[0]
            if self.running + entry.cost > self.slots:
                return
            queue.popleft()
            if queue:
                self.queues.move_to_end(caller)
            else:
                del self.queues[caller]
            if not entry.turn.done():
                self.running += entry.cost
                entry.turn.set_result(None)


@dataclass(frozen=True, slots=True)
class Line:
    """One caller's place in the queue."""

    admission: Admission
    caller: str

    async def enter(self, cost: int) -> "Slot":
        """Raises Busy."""
        return await self.admission.enter(self.caller, cost)


class Slot:
    """Taken until ``release``, which may be called more than once."""

    def __init__(self, admission: Admission, cost: int) -> None:
        self.admission = admission
        self.cost = cost
        self.held = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self.admission.give_back(self.cost)
