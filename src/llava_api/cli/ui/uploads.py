"""Files on their way from a browser into a conversation: the only time at which an image is on a disk.

Their names cannot be guessed, so that nobody can ask for another person's file.
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
"""A file that was added and not sent for so long is deleted."""
EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,5}")


class NoRoom(Exception):
    """The files that wait to be sent take too much space."""


class Uploads:
    def __init__(self, folder: Path, max_bytes: int) -> None:
        """``folder`` belongs to this process. ``max_bytes`` limits all files together."""
        self.folder = folder.resolve()
        self.max_bytes = max_bytes
        self.receiving_bytes = 0
        """Size of the files that are being received, which are on the disk before they are complete."""

    @contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """For one request: gives a function to call with the number of bytes that arrived, which raises NoRoom."""
        received = 0

        def count_bytes(count: int) -> None:
            nonlocal received
            if self.receiving_bytes + count > self.max_bytes:
                raise NoRoom
            received += count
            self.receiving_bytes += count

        try:
            yield count_bytes
        finally:
            self.receiving_bytes -= received

    def save(self, name: str, data: bytes) -> Path:
        """``name``: the browser's, of which only the extension is kept. Raises NoRoom."""
        self.forget_old()
        if len(data) + sum(path.stat().st_size for path in self.files()) > self.max_bytes:
            raise NoRoom
        extension = Path(name).suffix
        path = self.folder / (secrets.token_hex(16) + (extension.lower() if EXTENSION.fullmatch(extension) else ""))
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(data)
        return path

    def find(self, name: str) -> Path | None:
        """The upload at a path that a browser sent; None if the path is not that of an upload."""
        path = Path(name)
        if ".." in path.parts or not path.is_relative_to(self.folder):
            return None
        try:
            return path if path.is_file() and not path.is_symlink() else None
        except OSError:
            # For example a name that is longer than the file system allows.
            return None

    def drop(self, path: Path) -> None:
        """Delete a file and its copies, which Gradio makes under the same name in folders of their own."""
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
