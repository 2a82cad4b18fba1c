"""The disk under --data-dir: the room on it that is kept free, and the error when it is used up."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_api.errors import StorageFull

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def storage_full() -> StorageFull:
    return StorageFull(
        "The server's disk is full: delete files that you no longer need, or ask its operator to make room."
    )


def check_room(folder: Path, size: int, kept_free: int) -> None:
    """Raises StorageFull if fewer than ``kept_free`` bytes would be free after ``size`` more were written."""
    if shutil.disk_usage(folder).free - size < kept_free:
        raise storage_full()


@contextmanager
def refusing_full_disk() -> Iterator[None]:
    """Raises StorageFull instead of the system's errors for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise storage_full() from error
        raise
