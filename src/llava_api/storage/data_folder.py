"""The folder of --data-dir, which one server has to itself."""

import fcntl
import os
import sqlite3
from pathlib import Path

from llava_api.errors import StartupError
from llava_api.settings import Settings
from llava_api.storage.database import Database, unusable
from llava_api.storage.files import FileStore


class DataFolder:
    """Locks the folder and opens what is in it. Blocks. Raises StartupError.

    The kernel holds the lock, so it is free as soon as its holder has ended, even by SIGKILL.
    """

    def __init__(self, path: Path, kept_free: int = 0) -> None:
        self.lock = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / "files").mkdir(mode=0o700, exist_ok=True)
            self.lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = path / "state.sqlite3"
            self.database = Database(state)
            try:
                self.files = FileStore(path / "files", self.database, kept_free)
            except BaseException:
                self.database.close()
                raise
        except BaseException as error:
            if self.lock >= 0:
                os.close(self.lock)
            if isinstance(error, BlockingIOError):
                raise StartupError(
                    f"--data-dir {path} is used by another server: stop that server, or name another folder"
                ) from error
            if isinstance(error, sqlite3.Error):
                raise unusable(state, error) from error
            if isinstance(error, OSError):
                raise StartupError(f"--data-dir {path} cannot be used: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Blocks until what was begun has been written."""
        self.files.close()
        self.database.close()
        os.close(self.lock)


def open_data_folder(settings: Settings) -> DataFolder | None:
    """None without --data-dir. Raises StartupError."""
    if settings.data_dir is None:
        return None
    return DataFolder(Path(settings.data_dir).expanduser(), settings.min_free_disk_bytes)
