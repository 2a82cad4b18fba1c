"""Files that may change while the server runs: keys, limits, certificates."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from llava_api.errors import StartupError

log = logging.getLogger(__name__)

Contents = TypeVar("Contents")
Value = TypeVar("Value")


class WatchedFiles(Generic[Contents, Value]):
    """A value made of the contents of files. ``refresh`` makes it again when the contents have changed.

    ``name``: what the log calls the value, in the plural. ``read`` and ``make`` raise StartupError, which ends the
    start. Later such an error is logged once, and the value stays as it was.
    """

    def __init__(self, name: str, read: Callable[[], Contents], make: Callable[[Contents], Value]) -> None:
        self.name = name
        self.read = read
        self.make = make
        self.contents = read()
        self.value = make(self.contents)
        self.logged_error = ""

    def refresh(self) -> bool:
        """Read the files again. Returns whether the value was made anew. Blocks; call it in a thread."""
        try:
            contents = self.read()
            changed = contents != self.contents
            if changed:
                self.value = self.make(contents)
                # Only now: contents that fail because a file is half written are tried again next time.
                self.contents = contents
        except StartupError as error:
            if str(error) != self.logged_error:
                self.logged_error = str(error)
                log.error("%s stay as they were: %s", self.name, error)
            return False
        self.logged_error = ""
        return changed


def read_text(path: Path, name: str) -> str:
    """Raises StartupError, which begins with ``name``."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StartupError(f"{name} {path} cannot be read: {reason}") from error
