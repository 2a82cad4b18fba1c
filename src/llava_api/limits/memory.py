"""How many bytes of requests the server holds at once: their bodies, their pictures' files, their pixels.

A body is charged twice, as it comes: the text with its base64, and the files that are decoded from it. So a request
whose body is there does not fail for want of room for what it brought along.
"""

import threading
from collections import defaultdict

from llava_api.errors import Busy, ErrorCode

FULL = "The server holds as many bytes of requests as it may: try again in a moment, or send smaller pictures."


class MemoryBudget:
    """``max_bytes`` for all callers together; one with several requests gets up to half of it.

    Used in threads too.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.callers: defaultdict[str, int] = defaultdict(int)
        """Bytes that each holds; none without any."""
        self.lock = threading.Lock()

    def hold(self, caller: str) -> "Holding":
        return Holding(self, caller)


class Holding:
    """What one request holds, until ``release``."""

    def __init__(self, budget: MemoryBudget, caller: str) -> None:
        self.budget = budget
        self.caller = caller
        self.held_bytes = 0
        self.released = False

    def take(self, size: int) -> None:
        """So many bytes more. Raises Busy."""
        with self.budget.lock:
            if self.released:
                # Work in a thread whose caller has gone: what it holds is freed when it ends.
                return
            self.look(size)
            self.change(size)

    def check(self, size: int) -> None:
        """Whether there is room for so many bytes more, which are not taken yet. Raises Busy."""
        with self.budget.lock:
            self.look(size)

    def look(self, size: int) -> None:
        budget = self.budget
        callers_own = budget.callers.get(self.caller, 0)
        has_others = callers_own > self.held_bytes
        greedy = has_others and callers_own + size > budget.max_bytes // 2
        if size > 0 and (greedy or budget.held_bytes + size > budget.max_bytes):
            raise Busy(FULL, code=ErrorCode.MEMORY_FULL)

    def keep(self, size: int) -> None:
        """So many bytes are all that is still held. Raises Busy where that is more than it was."""
        self.take(size - self.held_bytes)

    def release(self) -> None:
        """May be called more than once."""
        with self.budget.lock:
            self.change(-self.held_bytes)
            self.released = True

    def change(self, size: int) -> None:
        budget = self.budget
        self.held_bytes += size
        budget.held_bytes += size
        budget.callers[self.caller] += size
        if not budget.callers[self.caller]:
            del budget.callers[self.caller]
