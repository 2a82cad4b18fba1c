"""A bounded, fair queue in front of the engine: callers take turns, however many requests each has waiting.

The engine serves in the order in which it is asked. So it is asked for no more than it computes at once, and who is
next is decided here, by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each caller's next request has
a start on a virtual clock, the earliest start is next, and a turn puts the caller's following one off by its cost over
the caller's weight. A newcomer starts at the clock's now, which is no later than the second turn of anybody: one with
one request waits for one turn of each other caller at most, not behind another's five hundred, whatever their weights.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from llava_api.errors import Busy, ErrorCode

FULL = "The server is busy and its queue is full: try again in a moment."
TOO_LONG = "The server is busy: your request waited too long for its turn. Try again in a moment."


@dataclass(frozen=True, slots=True)
class Waiting:
    turn: "asyncio.Future[None]"
    cost: int
    """Answers that it asks for at once."""
    weight: float


@dataclass(slots=True)
class Queue:
    """Of one caller."""

    start: float
    """Of its first request, on the virtual clock."""
    place: int
    """Of two that start together the one goes first that has waited longer since it came, or since its last turn."""
    requests: deque[Waiting] = field(default_factory=deque)

    @property
    def share(self) -> float:
        """Requests that wait for each unit of weight."""
        return len(self.requests) / self.requests[-1].weight

    @property
    def second_start(self) -> float:
        """Where its first request would put its second one."""
        return self.start + self.requests[0].cost / self.requests[0].weight


class Admission:
    """``slots``: answers that are made at once. ``most_waiting``: requests in the queue, of all callers together."""

    def __init__(self, slots: int, most_waiting: int, timeout_seconds: float) -> None:
        self.slots = slots
        self.most_waiting = most_waiting
        self.timeout_seconds = timeout_seconds
        self.running = 0
        """Slots that are taken."""
        self.queues: dict[str, Queue] = {}
        """By caller; none without a request."""
        self.now = 0.0
        """Of the virtual clock, which runs while somebody waits."""
        self.left: dict[str, float] = {}
        """Starts of callers that have none waiting and had turns ahead of the clock: coming back gains nothing."""
        self.places = 0

    @property
    def waiting(self) -> int:
        return sum(len(queue.requests) for queue in self.queues.values())

    async def enter(self, caller: str, cost: int, weight: float = 1.0) -> "Slot":
        """A slot when it is the caller's turn. Raises Busy."""
        cost = min(cost, self.slots)
        if not self.queues and self.running + cost <= self.slots:
            self.running += cost
            return Slot(self, cost)
        if self.waiting >= self.most_waiting:
            self.make_room(caller, weight)
        entry = Waiting(asyncio.get_running_loop().create_future(), cost, weight)
        if caller not in self.queues:
            self.queues[caller] = Queue(max(self.now, self.left.pop(caller, 0.0)), self.next_place())
        self.queues[caller].requests.append(entry)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await entry.turn
        except BaseException as error:
            self.leave(caller, entry)
            if isinstance(error, TimeoutError):
                raise Busy(TOO_LONG, code=ErrorCode.QUEUE_TIMEOUT) from error
            raise
        return Slot(self, cost)

    def make_room(self, caller: str, weight: float) -> None:
        """The queue is full: whoever has most in it for its weight gives up its newest request. Raises Busy.

        So a caller's flood fills the queue for that caller alone.
        """
        refusal = Busy(FULL, code=ErrorCode.QUEUE_FULL)
        own = self.queues.get(caller)
        share = (1 + (len(own.requests) if own is not None else 0)) / weight
        most = max(self.queues, key=lambda name: self.queues[name].share, default=None)
        if most is None or self.queues[most].share <= share:
            raise refusal
        queue = self.queues[most]
        newest = queue.requests.pop()
        if not newest.turn.done():
            newest.turn.set_exception(refusal)
        self.forget_idle(most, queue)

    def leave(self, caller: str, entry: Waiting) -> None:
        """Nobody waits for this turn any more; where it had come already, it is given back."""
        if entry.turn.done() and not entry.turn.cancelled():
            if entry.turn.exception() is None:
                self.give_back(entry.cost)
            return
        queue = self.queues.get(caller)
        if queue is not None and entry in queue.requests:
            queue.requests.remove(entry)
            self.forget_idle(caller, queue)
        self.next_turns()

    def give_back(self, cost: int) -> None:
        self.running -= cost
        self.next_turns()

    def next_turns(self) -> None:
        """The earliest start is next, as long as there is room for it; nobody overtakes it, or it might never be."""
        while self.queues:
            caller, queue = min(self.queues.items(), key=lambda item: (item[1].start, item[1].place))
            entry = queue.requests[0]
            if self.running + entry.cost > self.slots:
                return
            self.take_turn(caller, queue)
            if not entry.turn.done():
                self.running += entry.cost
                entry.turn.set_result(None)

    def take_turn(self, caller: str, queue: Queue) -> None:
        shared_by = sum(other.requests[0].weight for other in self.queues.values())
        entry = queue.requests.popleft()
        # With the work done, as all who wait share it, so that no stream of newcomers holds it up.
        now = max(self.now, queue.start) + entry.cost / shared_by
        queue.start += entry.cost / entry.weight
        queue.place = self.next_place()
        # But not beyond anybody's second turn, which a newcomer goes before.
        seconds = [other.second_start for other in self.queues.values() if other.requests]
        self.now = max(self.now, min([now, queue.start, *seconds]))
        self.forget_idle(caller, queue)

    def forget_idle(self, caller: str, queue: Queue) -> None:
        if not queue.requests:
            del self.queues[caller]
            self.left[caller] = queue.start
        if not self.queues:
            # Nobody waits: all are newcomers.
            self.now = 0.0
            self.left.clear()
        # And so is whoever the clock has caught up with.
        self.left = {name: start for name, start in self.left.items() if start > self.now}

    def next_place(self) -> int:
        self.places += 1
        return self.places


@dataclass(frozen=True, slots=True)
class Line:
    """One caller's place in the queue."""

    admission: Admission
    caller: str
    weight: float = 1.0

    async def enter(self, cost: int) -> "Slot":
        """Raises Busy."""
        return await self.admission.enter(self.caller, cost, self.weight)


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
