"""SQLite in a thread of its own.

Each call is one transaction, which is on the disk when the call returns (WAL, synchronous=FULL).
"""

import asyncio
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from llava_api.errors import StartupError
from llava_api.storage.full_disk import storage_full

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
Order = Literal["asc", "desc"]

MIGRATIONS = (
    """
    CREATE TABLE files (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        purpose TEXT NOT NULL,
        filename TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        listed INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX files_of_owner ON files (owner, id);
    CREATE INDEX files_used ON files (owner, purpose, bytes);
    CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;
    """,
    """
    CREATE TABLE batches (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        open INTEGER NOT NULL,
        batch TEXT NOT NULL,
        progress TEXT NOT NULL
    ) STRICT;
    CREATE INDEX batches_of_owner ON batches (owner, id);
    CREATE INDEX batches_open ON batches (owner) WHERE open;
    """,
)
"""Scripts that lead from an empty database to the present schema; ``user_version`` is how many of them were run.
A released script is never changed: add another one."""


def new_id(prefix: str) -> str:
    """An id that sorts by its time, so that a list can go on after an entry that has been deleted meanwhile."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex[:20]}"


class Database:
    """Opens ``path`` and brings it to the present schema. Raises StartupError. Blocks until then."""

    def __init__(self, path: Path) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        try:
            self.connection = self.thread.submit(opened, path).result()
        except BaseException:
            self.thread.shutdown()
            raise

    async def run(self, work: Work[Result], undo: Callable[[], object] = lambda: None) -> Result:
        """Return the result of ``work``, which is one transaction: an error undoes all of it. Raises StorageFull.

        ``undo`` is called after an error, and takes back what ``work`` did outside the database. Work that has begun is
        finished even if the caller is cancelled.
        """
        return await asyncio.wrap_future(self.thread.submit(self.transact, work, undo))

    def transact(self, work: Work[Result], undo: Callable[[], object]) -> Result:
        try:
            with self.connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)
        except BaseException as error:
            undo()
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise storage_full() from error
            raise

    async def page(
        self, query: str, values: Sequence[str | int], *, after: str | None, order: Order = "desc", limit: int
    ) -> tuple[list[Any], bool]:
        """Up to ``limit`` rows by their ids, which sort by time, and whether there are more.

        ``query`` ends with a condition. ``after``: the last id of the page before.
        """
        beyond, direction = (">", "ASC") if order == "asc" else ("<", "DESC")
        begun = "" if after is None else f"AND id {beyond} ?"
        text = f"{query} {begun} ORDER BY id {direction} LIMIT ?"
        given = [*values, *([] if after is None else [after]), limit + 1]
        found = await self.run(lambda connection: connection.execute(text, given).fetchall())
        return found[:limit], len(found) > limit

    def close(self) -> None:
        """Blocks until the work that was given has been done."""
        self.thread.submit(self.connection.close)
        self.thread.shutdown()


def opened(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        if not os.access(path, os.W_OK):
            raise sqlite3.OperationalError("it is read-only")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StartupError(f"{path} was written by a newer llava-api: use that one, or another --data-dir")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    return connection


def unusable(path: Path, error: sqlite3.Error) -> StartupError:
    return StartupError(f"--data-dir: {path} cannot be used: {error}")
