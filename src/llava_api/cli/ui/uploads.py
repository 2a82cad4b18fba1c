"""Files on their way from a browser into a conversation: the only place where a picture lies on a disk, and not long.

Each file has a name of its own that cannot be guessed, so that nobody meets another's.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FORGOTTEN_SECONDS = 600
"""After that a file that was added and never sent is deleted."""
ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}")


class NoRoom(Exception):
    """Too many files wait at once."""


class Uploads:
    def __init__(self, folder: Path, most_bytes: int) -> None:
        """``folder``: this process's own. ``most_bytes``: of all files that wait together."""
        self.folder = folder.resolve()
        self.most_bytes = most_bytes
        self.coming_bytes = 0
        """Of files that are being received: they lie on the disk before they are whole."""

    @contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """For one request: what it gives is called with the bytes that came. That raises NoRoom."""
        received = 0

        def came(count: int) -> None:
            nonlocal received
            if self.coming_bytes + count > self.most_bytes:
                raise NoRoom
            received += count
            self.coming_bytes += count

        try:
            yield came
        finally:
            self.coming_bytes -= received

    def save(self, name: str, data: bytes) -> Path:
        """``name``: as the browser calls it; its ending alone is kept. Raises NoRoom."""
        self.forget_old()
        if len(data) + sum(path.stat().st_size for path in self.files()) > self.most_bytes:
            raise NoRoom
        ending = Path(name).suffix
        path = self.folder / (secrets.token_hex(16) + (ending.lower() if ENDING.fullmatch(ending) else ""))
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(data)
        return path

    def find(self, name: str) -> Path | None:
        """The file of a path that a browser sent; None for whatever is not one of these files."""
        path = Path(name)
        if ".." in path.parts or not path.is_relative_to(self.folder):
            return None
        try:
            return path if path.is_file() and not path.is_symlink() else None
        except OSError:
            # Such as a name longer than the disk takes.
            return None

    def drop(self, path: Path) -> None:
        """Delete a file and its copies: Gradio makes one of the same name in a folder of its own."""
        for copy in [found for found in self.files() if found.name == path.name]:
            copy.unlink(missing_ok=True)
            if copy.parent != self.folder:
                shutil.rmtree(copy.parent, ignore_errors=True)

    def files(self) -> list[Path]:
        return [Path(root) / name for root, _, names in os.walk(self.folder) for name in names]

    def forget_old(self, seconds: float = FORGOTTEN_SECONDS) -> None:
        for path in self.files():
            try:
                if time.time() - path.stat().st_mtime >= seconds:
                    self.drop(path)
            except FileNotFoundError:
                pass
