"""Files of callers: a blob in a folder and a row in the database.

A blob without a row is not a file: it is what a crash has left, and ``FileStore`` removes it when it is made. So a blob
is written first and its row is deleted first.
"""

import asyncio
import logging
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import BinaryIO, TypeVar

from llava_api.errors import ApiError, ErrorCode, Forbidden, RequestTooLarge
from llava_api.storage.database import Database, Order, new_id
from llava_api.storage.full_disk import check_room, refusing_full_disk

log = logging.getLogger(__name__)
Result = TypeVar("Result")
THREADS = 4
SWEEP_SECONDS = 30.0
WRITE_BYTES = 1_000_000
"""An upload is written in pieces of this size."""
BLOB = re.compile(r"file-[0-9a-f]{32}(\.part)?")
PART = ".part"
"""End of a blob's name while it is uploaded."""


@dataclass(frozen=True, slots=True)
class Description:
    purpose: str
    filename: str
    """The caller's, for people: it never names a path here."""
    expires_after: int | None = None
    """Seconds from its creation."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    owner: str
    """Name of the API key that it belongs to; "" if the server has no keys."""
    purpose: str
    filename: str
    bytes: int
    created_at: int
    """Unix seconds."""
    expires_at: int | None


COLUMNS = ", ".join(field.name for field in fields(StoredFile))


@dataclass(frozen=True, slots=True)
class Quota:
    """What one owner may store; None for no limit."""

    bytes: int | None = None
    files: int | None = None


class FileStore:
    """``kept_free``: bytes of the disk that no file may take."""

    def __init__(self, folder: Path, database: Database, kept_free: int = 0) -> None:
        self.folder = folder
        self.database = database
        self.kept_free = kept_free
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")
        self.incoming: Counter[str] = Counter()
        """Bytes of uploads that are not files yet, by owner."""
        self.totals: Mapping[str, tuple[int, int]] = {}
        """Purpose -> number and bytes of files, as ``sweep`` has last counted them."""
        known = database.thread.submit(
            lambda: {row[0] for row in database.connection.execute("SELECT id FROM files")}
        ).result()
        for path in folder.iterdir():
            # Only what this class has made: the folder may hold other files, too.
            if BLOB.fullmatch(path.name) and path.name not in known:
                path.unlink()

    def path(self, file_id: str) -> Path:
        """Where the blob of an existing file is."""
        return self.folder / file_id

    async def create(
        self,
        owner: str,
        chunks: AsyncIterable[bytes],
        describe: Callable[[Path], Description],
        *,
        max_bytes: int | None = None,
        expected_bytes: int = 0,
        quota: Quota = Quota(),
    ) -> StoredFile:
        """Write ``chunks`` to the disk as a new file, which exists when this returns and not before.

        ``describe`` is called in a thread when all has been written, and may refuse the file by raising.
        ``expected_bytes``: refuse at once what will not fit. Raises RequestTooLarge, StorageFull and Forbidden.
        """
        file_id = new_id("file-")
        part = self.folder / f"{file_id}{PART}"
        used_files, used_bytes = await self.used(owner)
        size = 0

        def check(more: int) -> None:
            if max_bytes is not None and size + more > max_bytes:
                raise RequestTooLarge(f"The file is larger than the {max_bytes} bytes that this server accepts.")
            check_quota(quota, used_files + 1, used_bytes + self.incoming[owner] + more)

        check(expected_bytes)
        await self.in_thread(lambda: check_room(self.folder, expected_bytes, self.kept_free))
        with refusing_full_disk():
            blob: BinaryIO = await self.in_thread(lambda: part.open("xb"))
        try:
            waiting = bytearray()
            async for chunk in chunks:
                check(len(chunk))
                size += len(chunk)
                self.incoming[owner] += len(chunk)
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    data, waiting = waiting, bytearray()
                    await self.in_thread(lambda data=data: self.write(blob, data))  # type: ignore[misc]
            await self.in_thread(lambda: self.write(blob, waiting, last=True))
            about = await self.in_thread(lambda: describe(part))
            now = int(time.time())
            expires_at = None if about.expires_after is None else now + about.expires_after
            made = StoredFile(file_id, owner, about.purpose, about.filename, size, now, expires_at)
            path = self.path(file_id)
            await self.database.run(
                lambda connection: self.keep(connection, part, made, quota), lambda: path.unlink(missing_ok=True)
            )
            return made
        finally:
            self.incoming[owner] -= size
            if not self.incoming[owner]:
                del self.incoming[owner]
            # Closing waits for a thread that still writes for a caller that has left.
            await asyncio.shield(self.in_thread(lambda: close_part(blob, part)))

    def write(self, blob: BinaryIO, data: bytearray, last: bool = False) -> None:
        with refusing_full_disk():
            check_room(self.folder, len(data), self.kept_free)
            blob.write(data)
            if last:
                blob.flush()
                os.fsync(blob.fileno())

    def keep(self, connection: sqlite3.Connection, part: Path, made: StoredFile, quota: Quota) -> None:
        """Give the blob its name, and then its row, in one transaction."""
        files, size = used_by(connection, made.owner)
        check_quota(quota, files + 1, size + made.bytes)
        part.rename(self.path(made.id))
        sync_folder(self.folder)
        insert(connection, made)

    async def get(self, file_id: str, owner: str) -> StoredFile | None:
        """None if there is no such file, or it belongs to another owner."""
        now = int(time.time())
        found = await self.database.run(
            lambda connection: connection.execute(
                f"SELECT {COLUMNS} FROM files WHERE id = ? AND owner = ? AND listed AND ifnull(expires_at > ?, 1)",
                (file_id, owner, now),
            ).fetchone()
        )
        return None if found is None else StoredFile(*found)

    async def list(
        self, owner: str, *, purpose: str | None = None, after: str | None = None, order: Order = "desc", limit: int
    ) -> tuple[Sequence[StoredFile], bool]:
        """Up to ``limit`` files by their ids, which sort by time, and whether there are more."""
        text = f"SELECT {COLUMNS} FROM files WHERE owner = ? AND listed AND ifnull(expires_at > ?, 1)"
        values: list[str | int] = [owner, int(time.time())]
        if purpose is not None:
            text += " AND purpose = ?"
            values.append(purpose)
        found, has_more = await self.database.page(text, values, after=after, order=order, limit=limit)
        return [StoredFile(*row) for row in found], has_more

    async def delete(self, file_id: str, owner: str) -> bool:
        """Whether there was such a file. Readers that have opened it can read on."""
        gone = await self.database.run(
            lambda connection: connection.execute(
                "DELETE FROM files WHERE id = ? AND owner = ? AND listed RETURNING id", (file_id, owner)
            ).fetchall()
        )
        await self.unlink(gone)
        return bool(gone)

    async def expire(self) -> int:
        """Delete the files whose time has come, and return how many there were."""
        now = int(time.time())
        gone = await self.database.run(
            lambda connection: connection.execute(
                "DELETE FROM files WHERE expires_at <= ? RETURNING id", (now,)
            ).fetchall()
        )
        await self.unlink(gone)
        return len(gone)

    async def sweep(self) -> None:
        """Delete expired files and count the others, now and every half minute."""
        while True:
            try:
                gone = await self.expire()
                if gone:
                    log.info("%d files have expired", gone)
                self.totals = await self.database.run(totals)
            except (ApiError, sqlite3.Error, OSError) as error:
                log.error("expired files could not be deleted: %s; the next try is in %g s", error, SWEEP_SECONDS)
            await asyncio.sleep(SWEEP_SECONDS)

    async def unlink(self, rows: Sequence[tuple[str]]) -> None:
        for (file_id,) in rows:
            await self.in_thread(lambda file_id=file_id: self.path(file_id).unlink(missing_ok=True))  # type: ignore[misc]

    async def used(self, owner: str) -> tuple[int, int]:
        """Number and bytes of an owner's files."""
        return await self.database.run(lambda connection: used_by(connection, owner))

    # Outputs: files that the server writes by appending, and that callers see when they are complete.

    def add_output(self, connection: sqlite3.Connection, owner: str, filename: str) -> str:
        """Begin an output in the caller's transaction, and return its id. It is hidden until ``publish_output``."""
        made = StoredFile(new_id("file-"), owner, "batch_output", filename, 0, int(time.time()), None)
        insert(connection, made, listed=False)
        return made.id

    async def append(self, file_id: str, lines: bytes) -> None:
        """Add whole lines to an output, all or nothing. They are on the disk when this returns. Raises StorageFull."""
        await self.in_thread(lambda: self.append_now(file_id, lines))

    def append_now(self, file_id: str, lines: bytes) -> None:
        check_room(self.folder, len(lines), self.kept_free)
        # Without a buffer, which would be written once more when the file is closed after an error.
        with refusing_full_disk(), self.path(file_id).open("ab", buffering=0) as blob:
            before = blob.seek(0, os.SEEK_END)
            if not before:
                sync_folder(self.folder)
            try:
                left = memoryview(lines)
                while left:
                    left = left[blob.write(left) :]
                os.fsync(blob.fileno())
            except OSError:
                os.ftruncate(blob.fileno(), before)
                raise

    def publish_output(self, connection: sqlite3.Connection, file_id: str, expires_at: int | None) -> None:
        """Make an output that has been written a file of its owner, in the caller's transaction."""
        connection.execute(
            "UPDATE files SET listed = 1, bytes = ?, created_at = ?, expires_at = ? WHERE id = ?",
            (self.path(file_id).stat().st_size, int(time.time()), expires_at, file_id),
        )

    def drop_output(self, connection: sqlite3.Connection, file_id: str) -> None:
        """Forget an output, in the caller's transaction. The next start removes what there is of it."""
        connection.execute("DELETE FROM files WHERE id = ?", (file_id,))

    def in_thread(self, work: Callable[[], Result]) -> "asyncio.Future[Result]":
        # With the context, as asyncio.to_thread does: ``describe`` notes things in the request's record.
        return asyncio.get_running_loop().run_in_executor(self.threads, copy_context().run, work)

    def close(self) -> None:
        """Blocks until the work that was given has been done."""
        self.threads.shutdown()


def insert(connection: sqlite3.Connection, made: StoredFile, listed: bool = True) -> None:
    values = (*astuple(made), listed)
    connection.execute(f"INSERT INTO files ({COLUMNS}, listed) VALUES (?{', ?' * (len(values) - 1)})", values)


def used_by(connection: sqlite3.Connection, owner: str) -> tuple[int, int]:
    found: tuple[int, int] = connection.execute(
        "SELECT count(*), ifnull(sum(bytes), 0) FROM files WHERE owner = ?", (owner,)
    ).fetchone()
    return found


def totals(connection: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    rows = connection.execute("SELECT purpose, count(*), sum(bytes) FROM files GROUP BY purpose")
    return {purpose: (count, size) for purpose, count, size in rows}


def check_quota(quota: Quota, files: int, size: int) -> None:
    """Raises Forbidden, as Anthropic's Files API does."""
    for kind, most, wanted in (("files", quota.files, files), ("bytes", quota.bytes, size)):
        if most is not None and wanted > most:
            raise Forbidden(
                f"You may store {most} {kind} here, and this would be more: delete files that you no longer need.",
                code=ErrorCode.STORAGE_LIMIT_EXCEEDED,
            )


def close_part(blob: BinaryIO, part: Path) -> None:
    try:
        with refusing_full_disk():
            blob.close()
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
