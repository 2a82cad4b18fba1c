"""A bounded, fair queue: callers take turns, however many entries each of them has waiting.

Whatever does the work (the engine, threads, the network) takes it in the order in which it comes. So it is given no
more than it does at once, and the order is decided here, by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM
1996): each caller's next entry has a start on a virtual clock, the earliest start is next, and a turn delays the
caller's following entry by its cost divided by the caller's weight. A new caller starts at the clock's present time,
which is no later than any other caller's second turn. So a caller with one entry waits for at most one turn of each
other caller and not for another's five hundred, whatever their weights.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

from llava_api.errors import Busy, ErrorCode

FULL = "The server is busy and its queue is full: try again in a moment."
TOO_LONG = "The server is busy: your request waited too long for its turn. Try again in a moment."


def queue_full() -> Busy:
    return Busy(FULL, code=ErrorCode.QUEUE_FULL)


class Turns(Protocol):
    """Gives turns at the engine."""

    async def enter(self, caller: str, cost: int = 1, weight: float = 1.0) -> "Slot": ...


class Slot:
    """A share of what an ``Admission`` lets in at once, taken until ``release``.

    ``holders``: how many entries wait to use it together.
    """

    def __init__(self, admission: "Admission", caller: str, cost: int, holders: int) -> None:
        self.admission = admission
        self.caller = caller
        self.cost = cost
        self.holders = holders
        self.taken = True

    def release(self) -> None:
        """Give the slot to the next entry. Further calls do nothing."""
        if self.taken:
            self.taken = False
            self.admission.give_back(self)

    def decline(self) -> None:
        """Do without the slot; it is released when all its holders have declined."""
        self.holders -= 1
        if not self.holders:
            self.release()


@dataclass(frozen=True, eq=False, slots=True)
class QueueEntry:
    caller: str
    cost: int
    weight: float
    key: Hashable
    turn: "asyncio.Future[Slot]"


@dataclass(slots=True)
class CallerQueue:
    """The entries of one caller."""

    start: float
    """When its first entry starts, on the virtual clock."""
    place: int
    """Decides between equal starts: it is lower the longer the caller has had no turn."""
    entries: deque[QueueEntry] = field(default_factory=deque)

    @property
    def share(self) -> float:
        """Waiting entries for each unit of weight."""
        return len(self.entries) / self.entries[-1].weight

    @property
    def second_start(self) -> float:
        """Where a turn of the first entry would put the second one."""
        return self.start + self.entries[0].cost / self.entries[0].weight


class Admission:
    """Lets in work of a cost of up to ``slots`` at once, and of one caller up to ``per_caller``.

    ``most_waiting``: bound of the queue, for all callers together. ``timeout_seconds``: longest wait for a turn.
    ``full`` makes the error for an entry that finds no room in the queue. Use it only on the event loop.
    """

    def __init__(
        self,
        slots: int,
        most_waiting: float = float("inf"),
        timeout_seconds: float | None = None,
        *,
        per_caller: float = float("inf"),
        full: Callable[[], Busy] = queue_full,
    ) -> None:
        self.slots = slots
        self.most_waiting = most_waiting
        self.timeout_seconds = timeout_seconds
        self.per_caller = per_caller
        self.full = full
        self.running = 0
        """Slots that are taken."""
        self.running_by_caller: Counter[str] = Counter()
        self.queues: dict[str, CallerQueue] = {}
        """By caller; none is empty."""
        self.entries: dict[Hashable, list[QueueEntry]] = {}
        """All that wait, by key."""
        self.now = 0.0
        """The virtual clock's time. The clock runs while anything waits."""
        self.absent: dict[str, float] = {}
        """Starts of callers that have nothing waiting but are ahead of the clock, so that coming back gains nothing."""
        self.places = 0

    @property
    def waiting(self) -> int:
        return len(self.entries)

    async def enter(self, caller: str, cost: int = 1, weight: float = 1.0, key: Hashable = None) -> Slot:
        """Wait for the caller's turn and return the slot.

        Entries that wait with an equal ``key`` count as one. They get one slot together, at the earliest of their
        turns. Raises Busy when the queue is full or the wait too long.
        """
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        entry = QueueEntry(caller, min(cost, self.slots), weight, object() if key is None else key, turn)
        self.append(entry)
        self.next_turns()
        self.refuse_excess(caller)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await turn
        except BaseException as error:
            self.leave(entry)
            if isinstance(error, TimeoutError):
                raise Busy(TOO_LONG, code=ErrorCode.QUEUE_TIMEOUT) from error
            raise

    def append(self, entry: QueueEntry) -> None:
        if entry.caller not in self.queues:
            start = max(self.now, self.absent.pop(entry.caller, 0.0))
            self.queues[entry.caller] = CallerQueue(start, self.next_place())
        self.queues[entry.caller].entries.append(entry)
        self.entries.setdefault(entry.key, []).append(entry)

    def remove(self, entry: QueueEntry) -> None:
        same = self.entries[entry.key]
        same.remove(entry)
        if not same:
            del self.entries[entry.key]
        queue = self.queues[entry.caller]
        queue.entries.remove(entry)
        if not queue.entries:
            del self.queues[entry.caller]
            self.absent[entry.caller] = queue.start
        if not self.queues:
            # Nothing waits, so the next callers are all new.
            self.now = 0.0
            self.absent.clear()
        # A caller that the clock has caught up with is a new one, too.
        self.absent = {name: start for name, start in self.absent.items() if start > self.now}

    def refuse_excess(self, newcomer: str) -> None:
        """While the queue is too long, refuse the newest entry of the caller with the most entries for its weight.

        So a caller's flood fills the queue only for that caller. Among equals it is the newcomer that is refused.
        """
        while self.waiting > self.most_waiting:
            caller = max(self.queues, key=lambda name: (self.queues[name].share, name == newcomer))
            entry = self.queues[caller].entries[-1]
            self.remove(entry)
            if not entry.turn.done():
                entry.turn.set_exception(self.full())

    def leave(self, entry: QueueEntry) -> None:
        """Give up waiting; a turn that has come already is given back."""
        if not entry.turn.done() or entry.turn.cancelled():
            if entry in self.entries.get(entry.key, ()):
                self.remove(entry)
                self.next_turns()
        elif entry.turn.exception() is None:
            entry.turn.result().decline()

    def give_back(self, slot: Slot) -> None:
        held = self.running_by_caller[slot.caller]
        self.running -= slot.cost
        self.running_by_caller[slot.caller] -= slot.cost
        if held == slot.cost:
            del self.running_by_caller[slot.caller]
        if held >= self.per_caller and slot.caller in self.queues:
            # It waited for itself until now, and for the others it is a new caller.
            queue = self.queues[slot.caller]
            queue.start, queue.place = max(self.now, queue.start), self.next_place()
        self.next_turns()

    def next_turns(self) -> None:
        """Let in the earliest start as long as there is room for it.

        A later one does not overtake it, or a costly entry might wait for ever. Callers that have all the slots they
        may have are left out.
        """
        while self.running < self.slots:
            ready = [queue for name, queue in self.queues.items() if self.running_by_caller[name] < self.per_caller]
            earliest = min(ready, key=lambda queue: (queue.start, queue.place), default=None)
            if earliest is None or self.running + earliest.entries[0].cost > self.slots:
                return
            self.advance_clock(earliest, ready)
            self.let_in(earliest.entries[0])

    def let_in(self, entry: QueueEntry) -> None:
        together = list(self.entries[entry.key])
        for other in together:
            self.remove(other)
        waiting = [other.turn for other in together if not other.turn.done()]
        if waiting:
            self.running += entry.cost
            self.running_by_caller[entry.caller] += entry.cost
            slot = Slot(self, entry.caller, entry.cost, len(waiting))
            for turn in waiting:
                turn.set_result(slot)

    def advance_clock(self, queue: CallerQueue, ready: list[CallerQueue]) -> None:
        """Count a turn of ``queue``, which is one of those that are ``ready`` for it."""
        entry = queue.entries[0]
        shared_by = sum(other.entries[0].weight for other in ready)
        # The clock goes on by the work done, shared among all who wait, so that a stream of newcomers delays no others.
        now = max(self.now, queue.start) + entry.cost / shared_by
        queue.start += entry.cost / entry.weight
        queue.place = self.next_place()
        # But not beyond any caller's second turn: a newcomer goes before it.
        seconds = (other.second_start for other in ready if other is not queue)
        self.now = max(self.now, min(now, queue.start, *seconds))

    def next_place(self) -> int:
        self.places += 1
        return self.places

    def close(self) -> None:
        """Cancel everything that waits."""
        for entry in [entry for same in self.entries.values() for entry in same]:
            entry.turn.cancel()
