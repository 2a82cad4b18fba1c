"""The transport as uvicorn gets to see it: to close it is up to the connection, which knows what is still to come."""

import asyncio
from collections.abc import Callable
from typing import Any


class Outlet(asyncio.Transport):
    def __init__(self, wire: asyncio.Transport, on_close: Callable[[], None]) -> None:
        super().__init__()
        self.wire = wire
        self.on_close = on_close
        self.closing = False
        self.write = wire.write  # type: ignore[method-assign]
        self.pause_reading = wire.pause_reading  # type: ignore[method-assign]
        self.resume_reading = wire.resume_reading  # type: ignore[method-assign]

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.on_close()

    def abort(self) -> None:
        self.closing = True
        self.wire.abort()

    def is_closing(self) -> bool:
        return self.closing or self.wire.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.wire.get_extra_info(name, default)
