"""An open batch: which of its requests wait, which run, and which have been answered on the disk."""

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import orjson

from llava_api.batch.lines import Answer, Lines, add_usage, answered, check, expired, recover
from llava_api.batch.store import StoredBatch, save
from llava_api.concurrency.threads import FairThreads
from llava_api.protocol.batches import Batch, BatchError, BatchErrors, BatchUsage, RequestCounts, Status
from llava_api.storage.files import FileStore

OK = 200
MOST_UNWRITTEN = 1000
"""Answers of a batch that wait for the disk. Until they are written, none of its requests is begun."""
EXPIRED_AT_ONCE = 500
"""Lines that were not begun in time are written in pieces of this length."""
Answered = tuple[int, str, Answer]
"""Number, custom_id and answer of a line."""
Ending = Literal["completed", "expired", "cancelled", "failed"]
INPUT_GONE = "The input file was deleted before all requests had run, and the server was started again since."


class Job:
    """``clock`` returns Unix seconds. What an awaited method has done is on the disk when it returns."""

    def __init__(self, stored: StoredBatch, files: FileStore, clock: Callable[[], float] = time.time) -> None:
        self.stored = stored
        self.files = files
        self.clock = clock
        self.lines: Lines | None = None
        self.waiting: deque[int] = deque()
        """Numbers of the lines that are to be run."""
        self.unwritten: dict[bool, list[Answered]] = {True: [], False: []}
        """By whether they go into the output, not the error file: answers that are not on the disk yet."""
        self.done: set[int] = set()
        """Lines that were answered before the server was started."""
        self.news = asyncio.Event()
        """Set when there is something to write, or the batch is over."""
        self.cancelled = stored.batch.status == "cancelling"
        self.over = False
        """Whether no more of its requests are begun."""

    @property
    def id(self) -> str:
        return self.stored.batch.id

    @property
    def owner(self) -> str:
        return self.stored.owner

    @property
    def counts(self) -> RequestCounts:
        return self.stored.batch.request_counts

    @property
    def answered(self) -> bool:
        return self.counts.completed + self.counts.failed == self.counts.total

    @property
    def expired(self) -> bool:
        return self.clock() >= self.stored.batch.expires_at

    @property
    def ready(self) -> bool:
        """Whether a request of it may begin."""
        unwritten = len(self.unwritten[True]) + len(self.unwritten[False])
        return bool(self.waiting) and not self.over and not self.cancelled and unwritten < MOST_UNWRITTEN

    def size(self, number: int) -> int:
        """Bytes of a request."""
        assert self.lines is not None
        return self.lines.ends[number] - self.lines.starts[number]

    def note(self, status: Status) -> None:
        note(self.stored.batch, status, self.clock())

    async def save(self) -> None:
        await self.files.database.run(lambda connection: save(connection, self.stored))

    async def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.note("cancelling")
            self.news.set()
            await self.save()

    async def open_input(self, threads: FairThreads[Any], most_lines: int) -> None:
        """Open the input file. A file that was deleted and is still needed becomes the batch's error."""
        batch = self.stored.batch
        path, most = self.files.path(batch.input_file_id), max(most_lines, self.counts.total)
        try:
            self.lines = await threads.run(self.owner, lambda: Lines(path, most))
        except FileNotFoundError:
            if self.answered and self.counts.total:
                return
            batch.errors = BatchErrors(data=[BatchError(code="file_not_found", line=None, message=INPUT_GONE)])
            return
        if batch.status != "validating":
            self.waiting.extend(number for number in range(len(self.lines)) if number not in self.done)

    async def validate(self, threads: FairThreads[Any], most_lines: int, max_line_bytes: int) -> None:
        """Check the input, and note what is wrong with it. Raises StorageFull."""
        lines, batch, progress = self.lines, self.stored.batch, self.stored.progress
        assert lines is not None
        found = await threads.run(self.owner, lambda: check(lines, batch.endpoint, most_lines, max_line_bytes))
        batch.model = found.model
        if found.errors or self.cancelled:
            batch.errors = BatchErrors(data=found.errors) if found.errors else None
            return
        batch.request_counts.total = len(lines)
        self.note("in_progress")

        def work(connection: sqlite3.Connection) -> None:
            progress.output_id = self.files.add_output(connection, self.owner, f"{batch.id}_output.jsonl")
            progress.error_id = self.files.add_output(connection, self.owner, f"{batch.id}_error.jsonl")
            save(connection, self.stored)

        await self.files.database.run(work)
        # Only now: this is called again after an error.
        self.waiting.extend(range(len(lines)))

    async def recover(self) -> None:
        """Find out what was done before the server was started."""
        batch, progress = self.stored.batch, self.stored.progress

        def read() -> tuple[set[int], set[int]]:
            completed, failed = (
                set(recover(self.files.path(output), batch.usage)) for output in (progress.output_id, progress.error_id)
            )
            return completed, failed

        if not progress.output_id:
            return
        # What an earlier process had counted is counted anew.
        batch.usage = BatchUsage()
        completed, failed = await asyncio.to_thread(read)
        self.counts.completed, self.counts.failed = len(completed), len(failed)
        self.done = completed | failed

    def answer(self, number: int, custom_id: str, answer: Answer) -> None:
        self.unwritten[answer.status == OK].append((number, custom_id, answer))
        self.news.set()

    async def write(self) -> None:
        """Append the answers that have come to the output and to the error file. Raises StorageFull."""
        progress = self.stored.progress
        for fine, output in ((True, progress.output_id), (False, progress.error_id)):
            taken, self.unwritten[fine] = self.unwritten[fine], []
            if not taken:
                continue
            try:
                await self.files.append(output, b"".join(answered(self.id, *each) for each in taken))
            except BaseException:
                self.unwritten[fine][:0] = taken
                raise
            for _, _, answer in taken if fine else ():
                add_usage(self.stored.batch.usage, orjson.loads(answer.body))
            self.counts.completed += fine * len(taken)
            self.counts.failed += (not fine) * len(taken)

    async def write_expired(self) -> None:
        """Name the requests that did not run in time in the error file. Raises StorageFull."""
        lines = self.lines
        self.stored.progress.late = True
        await self.save()
        while self.waiting and lines is not None:
            late = [self.waiting.popleft() for _ in range(min(EXPIRED_AT_ONCE, len(self.waiting)))]

            def written(late: list[int] = late, lines: Lines = lines) -> bytes:
                return b"".join(expired(self.id, number, lines.request(number)["custom_id"]) for number in late)

            try:
                await self.files.append(self.stored.progress.error_id, await asyncio.to_thread(written))
            except BaseException:
                self.waiting.extendleft(reversed(late))
                raise
            self.counts.failed += len(late)

    async def end(self, ending: Ending, lifetime: int | None) -> None:
        """Publish the two files, if there is anything in them. ``lifetime``: seconds, None for ever."""
        batch, progress, files = self.stored.batch, self.stored.progress, self.files
        if ending in ("completed", "expired") and batch.status != "finalizing":
            self.note("finalizing")
            await self.save()
        kept = progress.output_seconds or lifetime
        expires_at = None if kept is None else int(self.clock()) + kept
        ended = StoredBatch(self.owner, batch.model_copy(), progress)
        outputs = progress.output_id, progress.error_id
        made = {output for output in outputs if output and size_of(files.path(output))}
        note(ended.batch, ending, self.clock())
        ended.batch.output_file_id = progress.output_id if progress.output_id in made else None
        ended.batch.error_file_id = progress.error_id if progress.error_id in made else None

        def work(connection: sqlite3.Connection) -> None:
            for output in outputs:
                if output in made:
                    files.publish_output(connection, output, expires_at)
                else:
                    files.drop_output(connection, output)
            save(connection, ended, open=False)

        await files.database.run(work)
        self.stored = ended

    def close(self) -> None:
        if self.lines is not None:
            self.lines.close()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def note(batch: Batch, status: Status, seconds: float) -> None:
    """Set the status, and the time of it."""
    batch.status = status
    setattr(batch, f"{status}_at", int(seconds))
