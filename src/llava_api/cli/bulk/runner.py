"""Ask for all items of a job: as many at once as the server takes, each answer written when it comes."""

import asyncio
import time
from collections.abc import Iterator

from llava_api.cli.bulk.job import Item, ItemFailed, Job, Reply, Request, batch_line
from llava_api.cli.bulk.pace import Pace
from llava_api.cli.bulk.progress import Shown
from llava_api.cli.bulk.results import ResultFile
from llava_api.cli.bulk.sender import Broken, Busy, Sender
from llava_api.errors import StartupError

MAX_BROKEN = 5
"""Tries of a request whose answer breaks off."""
PATIENCE_SECONDS = 600.0
"""A server that has finished nothing for so long ends the run."""


class Runner:
    def __init__(
        self, job: Job, results: ResultFile, failures: ResultFile, sender: Sender, shown: Shown, concurrency: int
    ) -> None:
        self.job = job
        self.results = results
        self.failures = failures
        self.sender = sender
        self.shown = shown
        self.pace = Pace(concurrency)
        self.last_finished = time.monotonic()

    async def run(self) -> None:
        """Raises StartupError if the rest cannot be asked for."""
        try:
            async with self.sender.http, asyncio.TaskGroup() as group:
                for item in self.left():
                    await self.pace.enter()
                    group.create_task(self.finish(item))
        except ExceptionGroup as group_error:
            # The first is the cause; a StartupError is for the person who runs the command.
            raise group_error.exceptions[0] from group_error

    def left(self) -> Iterator[Item]:
        """The items that have no line in the output."""
        done = self.results.done()
        for item in self.job.items():
            if done[item.key]:
                done[item.key] -= 1
            else:
                yield item

    async def finish(self, item: Item) -> None:
        """Ask, within the pace, and write what came of it."""
        counts = self.shown.counts
        reply = None
        try:
            try:
                request = await asyncio.to_thread(item.prepare)
                reply = await self.answer(request)
                if reply.status != 200:
                    self.failures.add(item.key, batch_line(item.custom_id, reply))
                    counts.failed += 1
                else:
                    self.results.add(item.key, self.job.line_for(item, reply))
                    counts.done += 1
                    counts.images += request.images
            finally:
                self.pace.leave()
        except ItemFailed as error:
            self.failures.add(item.key, batch_line(item.custom_id, None, error))
            counts.failed += 1
        self.last_finished = time.monotonic()
        self.shown.update()

    async def answer(self, request: Request) -> Reply:
        """Ask until the server answers. Raises ItemFailed, and StartupError if it answers nothing any more."""
        first = time.monotonic()
        broken = 0
        while True:
            sent_at = time.monotonic()
            try:
                reply = await self.sender.send(request)
                self.pace.answered()
                return reply
            except Busy as busy:
                self.check_patience(busy, first)
                self.pace.refused(sent_at, busy.retry_after)
            except Broken as error:
                broken += 1
                if broken == MAX_BROKEN:
                    raise ItemFailed("server_error", str(error)) from error
                if error.connection_lost:
                    self.pace.refused(sent_at, None)
            self.pace.leave()
            await self.pace.enter(again=True)

    def check_patience(self, busy: Busy, first: float) -> None:
        now = time.monotonic()
        if (busy.retry_after or 0) > PATIENCE_SECONDS:
            raise StartupError(f"{busy.why} and asks to wait {busy.retry_after:.0f} s: run the same command again then")
        if now - first > PATIENCE_SECONDS:
            if now - self.last_finished > PATIENCE_SECONDS:
                raise StartupError(f"{busy.why}: run the same command again when it does")
            raise ItemFailed("server_busy", f"After {PATIENCE_SECONDS:.0f} s, {busy.why}.")
