"""Files that may change while the server runs: keys, limits, certificates."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from llava_api.errors import StartupError

log = logging.getLogger(__name__)

Contents = TypeVar("Contents")
Value = TypeVar("Value")


class WatchedFiles(ABC, Generic[Contents, Value]):
    """A value made of the contents of files. ``refresh`` makes it again when the contents have changed.

    ``read`` and ``make`` raise StartupError, which ends the start. Later such an error is logged once, and the value
    stays as it was.
    """

    plural: str
    """What the log calls the value."""

    def __init__(self) -> None:
        self.contents = self.read()
        self.value = self.make(self.contents)
        self.logged_error = ""

    @abstractmethod
    def read(self) -> Contents: ...

    @abstractmethod
    def make(self, contents: Contents) -> Value: ...

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Names for the log of what the value consists of."""

    def refresh(self) -> None:
        """Read the files again. Blocks; call it in a thread."""
        try:
            contents = self.read()
            if contents != self.contents:
                self.value = self.make(contents)
                # Only now: contents that fail because a file is half written are tried again next time.
                self.contents = contents
                log.info("%s read again: %s", self.plural, ", ".join(self.names()) or "none")
        except StartupError as error:
            if str(error) != self.logged_error:
                self.logged_error = str(error)
                log.error("%s stay as they were: %s", self.plural, error)
        else:
            self.logged_error = ""


def read_text(path: Path, name: str) -> str:
    """Raises StartupError, which begins with ``name``."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StartupError(f"{name} {path} cannot be read: {reason}") from error
