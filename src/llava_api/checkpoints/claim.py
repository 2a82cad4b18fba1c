"""One writer at a time for a folder that is made in many steps, and never an unfinished folder under its name.

Writers are kept apart by a lock rather than a process id, because two containers that share a volume both have a
process 1. It is the kernel's lock, so it is free again when its holder is killed.
"""

import glob
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llava_api.errors import StartupError


@contextmanager
def claimed(target: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock for making ``target``, which need not exist; its parent must.

    Leaves an empty file beside it, because two processes can hold a lock whose file was removed. Raises StartupError if
    another process holds it and ``wait`` is false, and OSError if no file can be made there, or none locked.
    """
    path = target.with_name(f".{target.name}.lock")
    # Where no file can be made, as in /proc, FileLock would only say that another process holds it.
    path.touch()
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StartupError(
            f"{target} is being written by another llava-api: wait until it is done, or name another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``, which is renamed to it at the end, or removed if something is raised.

    The caller must hold the claim. Folders that earlier writers left unfinished are removed.
    """
    for left_over in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    scratch = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
    scratch.mkdir()
    try:
        yield scratch
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
