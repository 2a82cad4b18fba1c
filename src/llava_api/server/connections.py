"""The open connections of a server: how many there may be, and which one goes when another comes."""

from typing import Protocol


class Connection(Protocol):
    def evict(self) -> None:
        """Close at once, without a word."""


class Connections:
    """Beyond ``limit`` the connection that has been idle longest makes room.

    Idle is whoever has sent no whole request, so thousands of connections that say nothing, or one letter a second,
    keep nobody out. One that is being answered is never closed for another.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Connection] = set()
        self.idle: dict[Connection, None] = {}
        """In the order in which they became so."""

    def admit(self, connection: Connection) -> bool:
        """False where all are at work. It counts as open and idle all the same, until it is forgotten."""
        has_room = len(self.open) - len(self.idle) < self.limit
        if len(self.open) >= self.limit and self.idle:
            oldest = next(iter(self.idle))
            self.forget(oldest)
            oldest.evict()
        self.open.add(connection)
        self.idle[connection] = None
        return has_room

    def is_busy(self, connection: Connection) -> None:
        self.idle.pop(connection, None)

    def is_idle(self, connection: Connection) -> None:
        if connection in self.open:
            self.idle[connection] = None

    def forget(self, connection: Connection) -> None:
        self.open.discard(connection)
        self.idle.pop(connection, None)
