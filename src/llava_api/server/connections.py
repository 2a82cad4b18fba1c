"""How many connections a server keeps open, and which one it closes to make room."""

from typing import Protocol


class Connection(Protocol):
    def evict(self) -> None:
        """Close at once, without an answer."""


class ConnectionLimit:
    """Beyond ``limit``, a new connection takes the place of the one that has been idle longest.

    A connection is idle until it has sent the head of a request, and again when it has been answered. So thousands of
    clients that send nothing, or one byte a second, keep no other client out. A connection with a request that is being
    answered is never closed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Connection] = set()
        self.idle: dict[Connection, None] = {}
        """The connection that has been idle longest comes first."""

    def add(self, connection: Connection) -> bool:
        """Count the connection as open and idle. Returns False if too many are being answered for one more."""
        has_room = len(self.open) - len(self.idle) < self.limit
        if len(self.open) >= self.limit and self.idle:
            oldest = next(iter(self.idle))
            self.remove(oldest)
            oldest.evict()
        self.open.add(connection)
        self.idle[connection] = None
        return has_room

    def mark_busy(self, connection: Connection) -> None:
        self.idle.pop(connection, None)

    def mark_idle(self, connection: Connection) -> None:
        if connection in self.open:
            self.idle[connection] = None

    def remove(self, connection: Connection) -> None:
        self.open.discard(connection)
        self.idle.pop(connection, None)
