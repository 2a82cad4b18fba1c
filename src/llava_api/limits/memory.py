"""How many bytes of requests the server holds at once: their bodies, their images' files, their pixels.

A body is counted twice while it is read: the text with its base64, and the files that are decoded from it. So a request
whose body has been read is not refused later because of what came with it.
"""

import threading
from collections import defaultdict

from llava_api.errors import Busy, ErrorCode

FULL = "The server's memory for requests is full: try again in a moment, or send smaller images."


class MemoryBudget:
    """``max_bytes`` for all callers together. A caller with several requests gets up to half of it. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.callers: defaultdict[str, int] = defaultdict(int)
        """Bytes by caller, of those that hold any."""
        self.lock = threading.Lock()

    def hold(self, caller: str) -> "Holding":
        return Holding(self, caller)


class Holding:
    """The bytes that one request holds, until ``release``."""

    def __init__(self, budget: MemoryBudget, caller: str) -> None:
        self.budget = budget
        self.caller = caller
        self.held_bytes = 0
        self.released = False

    def take(self, size: int) -> None:
        """Count ``size`` more bytes. Raises Busy if there is no room."""
        with self.budget.lock:
            if self.released:
                # A thread may still work for a client that has left. What it allocates is freed when it ends.
                return
            self.require(size)
            self.change(size)

    def check(self, size: int) -> None:
        """Check that ``size`` more bytes would fit, without counting them. Raises Busy."""
        with self.budget.lock:
            self.require(size)

    def require(self, size: int) -> None:
        budget = self.budget
        callers_own = budget.callers.get(self.caller, 0)
        has_others = callers_own > self.held_bytes
        greedy = has_others and callers_own + size > budget.max_bytes // 2
        if size > 0 and (greedy or budget.held_bytes + size > budget.max_bytes):
            raise Busy(FULL, code=ErrorCode.MEMORY_FULL)

    def keep(self, size: int) -> None:
        """Count ``size`` bytes from now on, and no others. Raises Busy if that is more than before and has no room."""
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
