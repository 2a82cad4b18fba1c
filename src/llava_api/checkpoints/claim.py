"""One writer at a time for a folder that is made in many steps, and nothing half made under its name.

The writer is known by a lock, not by its process number: two containers that share a volume both have a process 1. The
lock is the kernel's, so it is free again when its holder is killed.
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
    """Be the only one who makes ``target``, which need not exist; its parent must.

    Leaves an empty file beside it: where a lock's file is removed, two can hold it. Raises StartupError if another
    holds it and ``wait`` is false; OSError where the place takes no locks.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=-1 if wait else 0)
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
    """An empty folder beside ``target``, which takes its name at the end, or is removed where something is raised.

    For the holder of the claim alone: what others left behind is then nobody's, and is removed.
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
