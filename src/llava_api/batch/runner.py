"""Runs the requests of open batches while the engine has nothing better to do.

Each batch has a task: it checks the input, waits for answers, writes all that have come at once, and publishes the
output. Which request runs next is decided in one place, ``Runner.fill``, whenever something has changed.
"""

import asyncio
import logging
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from llava_api.batch.job import OK, Job
from llava_api.batch.lines import Answer, Lines
from llava_api.batch.room import LineRun, Room
from llava_api.batch.store import BatchStore, StoredBatch
from llava_api.concurrency.admission import Admission
from llava_api.concurrency.threads import FairThreads
from llava_api.errors import ErrorCode, InvalidRequest, StorageFull
from llava_api.protocol.batches import Batch
from llava_api.protocol.wire import ErrorReply
from llava_api.settings import Settings
from llava_api.storage.files import FileStore
from llava_api.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PUT_BACK = 499
"""Status of a request that was broken off before its answer."""
TRY_AGAIN = (429, 503)
PAUSE_SECONDS = 1.0
"""After such a status, and after a full disk."""
WATCH_SECONDS = 2.0
"""How often the keys, and whether the server drains, are looked at again."""
MOST_LOSSES = 3
LOST = (ErrorCode.ENGINE_STOPPED, ErrorCode.REQUEST_TIMEOUT)
"""Codes of errors that the request itself may have caused."""

Ask = Callable[[LineRun, str, str, bytes], Awaitable[Answer]]
"""Runs a request: (run, owner, path, body). A run that gives way ends with the status ``PUT_BACK``."""


class Runner:
    """``is_owner``: whether there is a key of this name; the batches of others rest. ``weight_of``: an owner's share.

    ``may_start``: whether the server takes requests now.
    """

    def __init__(
        self,
        settings: Settings,
        store: BatchStore,
        files: FileStore,
        room: Room,
        ask: Ask,
        metrics: Metrics,
        *,
        is_owner: Callable[[str], bool],
        weight_of: Callable[[str], float],
        may_start: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.store = store
        self.files = files
        self.room = room
        self.ask = ask
        self.metrics = metrics
        self.is_owner = is_owner
        self.weight_of = weight_of
        self.may_start = may_start
        self.clock = clock
        self.jobs: dict[str, Job] = {}
        """Open batches by id, the oldest first."""
        self.threads: FairThreads[Any] = FairThreads(1, "batches", Admission(1))
        """Reads whole inputs, one at a time: owners take turns, and the threads of interactive requests stay free."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.turns: Counter[str] = Counter()
        """When an owner last had a turn, in turns of all."""
        self.paused_until = 0.0
        self.closing = False
        room.changed = self.fill

    async def start(self) -> None:
        """Go on with the batches that were open when the server ended."""
        self.watching = asyncio.create_task(self.watch())
        for stored in await self.store.open():
            job = self.add(stored)
            await job.recover()
            self.task(self.run(job))

    def task(self, work: Coroutine[Any, Any, None]) -> None:
        made = asyncio.create_task(work)
        self.tasks.add(made)
        made.add_done_callback(self.tasks.discard)

    async def create(self, made: StoredBatch, most_open: int | None) -> None:
        """Raises InvalidRequest if its owner has too many open batches."""
        await self.store.add(made, most_open)
        job = self.add(made)
        log.info("batch %s of key %s: created", job.id, job.owner or "-")
        self.task(self.run(job))

    def add(self, stored: StoredBatch) -> Job:
        job = self.jobs[stored.batch.id] = Job(stored, self.files, self.clock)
        return job

    async def get(self, batch_id: str, owner: str) -> Batch | None:
        """As it is at this moment. None if there is no such batch, or it belongs to another owner."""
        job = self.jobs.get(batch_id)
        if job is not None:
            return job.stored.batch if job.owner == owner else None
        return await self.store.get(batch_id, owner)

    async def list(self, owner: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Up to ``limit`` batches, the newest first, and whether there are more."""
        found, has_more = await self.store.list(owner, after, limit)
        live = {batch_id: job.stored.batch for batch_id, job in self.jobs.items()}
        return [live.get(batch.id, batch) for batch in found], has_more

    async def cancel(self, batch_id: str, owner: str) -> bool:
        """Returns False if the owner has no such open batch, or it is too late to cancel it."""
        job = self.jobs.get(batch_id)
        if job is None or job.owner != owner or (job.over and not job.cancelled):
            return False
        await job.cancel()
        return True

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self.may_start():
                # The server drains: it need not wait for these.
                for run in self.room.runs:
                    if not run.admitted:
                        run.give_way()
            self.room.refresh()

    async def run(self, job: Job) -> None:
        """From where the batch is to its end, or until the server ends."""
        try:
            await job.open_input(self.threads, self.settings.max_batch_requests)
            if job.lines is not None and job.stored.batch.status == "validating":
                most, longest = self.settings.max_batch_requests, self.settings.max_body_bytes
                await self.until_written(partial(job.validate, self.threads, most, longest))
            await self.until_over(job)
            if self.closing:
                return
            await self.end(job)
        except Exception:
            log.exception("batch %s stopped; it goes on when the server is started again", job.id)
        finally:
            job.close()
            if not self.closing:
                self.jobs.pop(job.id, None)

    async def until_written(self, work: Callable[[], Awaitable[None]]) -> None:
        """Try ``work`` again while the disk does not take it. Raises its error when the server ends."""
        while True:
            try:
                return await work()
            except (StorageFull, sqlite3.OperationalError, OSError) as error:
                log.error("a batch cannot be written (%s); the next try is in %g s", error, PAUSE_SECONDS)
                if self.closing:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)

    async def until_over(self, job: Job) -> None:
        """Write answers until all have come, or the batch has expired or was cancelled."""
        self.fill()
        while not (job.answered or job.cancelled or job.expired or job.stored.batch.errors is not None):
            if self.closing:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, job.stored.batch.expires_at - self.clock())):
                    await job.news.wait()
            job.news.clear()
            await self.until_written(job.write)
            self.fill()
        job.over = True
        for run in self.room.runs_of(job):
            run.give_way()
        while self.room.runs_of(job):
            await job.news.wait()
            job.news.clear()
        await self.until_written(job.write)

    async def end(self, job: Job) -> None:
        batch = job.stored.batch
        lifetime = self.settings.file_lifetime_seconds or None
        if batch.errors is not None:
            await self.until_written(partial(job.end, "failed", lifetime))
        elif job.cancelled:
            await self.until_written(partial(job.end, "cancelled", lifetime))
        elif job.answered and not job.stored.progress.late:
            await self.until_written(partial(job.end, "completed", lifetime))
        else:
            failed = batch.request_counts.failed
            await self.until_written(job.write_expired)
            self.metrics.batch_requests.labels("expired").inc(batch.request_counts.failed - failed)
            await self.until_written(partial(job.end, "expired", lifetime))
        batch = job.stored.batch
        counts = batch.request_counts
        seconds = self.clock() - batch.created_at
        text = "batch %s of key %s: %s; %d requests, %d completed, %d failed, in %.0f s"
        log.info(text, job.id, job.owner or "-", batch.status, counts.total, counts.completed, counts.failed, seconds)

    def fill(self) -> None:
        """Begin requests while there is room for them."""
        while not self.closing and time.monotonic() >= self.paused_until and self.may_start() and self.room.has_room():
            job = self.next_job()
            if job is None or not self.room.has_memory(job.size(job.waiting[0])):
                return
            number = job.waiting.popleft()
            run = LineRun(self.room, job, number)
            self.room.enter(run)
            self.turns[job.owner] = max(self.turns.values(), default=0) + 1
            self.task(self.run_line(run))

    def next_job(self) -> Job | None:
        """The oldest batch of the owner that has the fewest running for its weight, and of those waited longest."""
        # A request that the engine was lost with runs by itself, so that others do not seem to be the cause.
        if any(run.number in run.job.stored.progress.losses for run in self.room.runs):
            return None
        first: dict[str, Job] = {}
        for job in self.jobs.values():
            if job.ready and self.is_owner(job.owner):
                first.setdefault(job.owner, job)
        running = Counter(run.job.owner for run in self.room.runs)
        found = min(
            first.values(),
            key=lambda job: (running[job.owner] / self.weight_of(job.owner), self.turns[job.owner]),
            default=None,
        )
        if found is not None and found.waiting[0] in found.stored.progress.losses and self.room.runs:
            return None
        return found

    async def run_line(self, run: LineRun) -> None:
        job, number = run.job, run.number
        assert job.lines is not None
        outcome = "put_back"
        try:
            custom_id, body = await asyncio.to_thread(read, job.lines, number)
            if isinstance(body, Answer):
                answer = body
            else:
                answer = await self.ask(run, job.owner, job.stored.batch.endpoint, body)
            if answer.status != PUT_BACK and not await self.is_tried_again(run, answer):
                job.answer(number, custom_id, answer)
                outcome = "completed" if answer.status == OK else "failed"
        except Exception:
            log.exception("a request of batch %s could not be run", job.id)
            self.pause()
        finally:
            self.metrics.batch_requests.labels(outcome).inc()
            if outcome == "put_back":
                job.waiting.appendleft(number)
            job.news.set()
            self.room.leave(run)

    async def is_tried_again(self, run: LineRun, answer: Answer) -> bool:
        if answer.status not in TRY_AGAIN:
            return False
        self.pause()
        code = orjson.loads(answer.body)["error"]["code"]
        if code in LOST and run.admitted:
            losses = run.job.stored.progress.losses
            losses[run.number] = losses.get(run.number, 0) + 1
            await self.until_written(run.job.save)
            return losses[run.number] < MOST_LOSSES
        return True

    def pause(self) -> None:
        self.paused_until = time.monotonic() + PAUSE_SECONDS
        asyncio.get_running_loop().call_later(PAUSE_SECONDS, self.fill)

    def sample(self) -> None:
        """Set the metrics that mirror the current state."""
        self.metrics.batches.set(len(self.jobs))
        self.metrics.batch_requests_running.set(len(self.room.runs))
        self.metrics.batch_requests_waiting.set(sum(len(job.waiting) for job in self.jobs.values()))

    async def close(self) -> None:
        """Put back what runs, and write what has been answered."""
        self.closing = True
        self.watching.cancel()
        for job in self.jobs.values():
            job.news.set()
        self.threads.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def read(lines: Lines, number: int) -> tuple[str, bytes | Answer]:
    """The custom_id of a request, and its body or its refusal. Blocks."""
    request = lines.request(number)
    custom_id, body = request["custom_id"], request["body"]
    if body.get("stream"):
        return custom_id, refused(InvalidRequest("A batch has no streams: leave stream out.", param="stream"))
    try:
        return custom_id, orjson.dumps(body)
    except orjson.JSONEncodeError:
        return custom_id, refused(
            InvalidRequest("The request's body is nested too deeply.", code=ErrorCode.INVALID_JSON)
        )


def refused(error: InvalidRequest) -> Answer:
    return Answer(error.status, f"req_{uuid.uuid4().hex}", ErrorReply.of(error, "").model_dump_json().encode())
