"""Threads for pictures, and who may use one next: callers take turns, picture by picture.

What waits for a thread waits here and not in the executor, whose queue has no bound, knows no callers and forgets
nobody who has left. A thread that runs cannot be stopped: it ends its picture, whose size is bounded, and nobody else
is given its place until then.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llava_api.errors import Busy, ErrorCode

Result = TypeVar("Result")
FULL = "The server has many pictures to decode at the moment: try again in a few seconds."


@dataclass(eq=False, slots=True)
class Waiting(Generic[Result]):
    """One who wants a job's result."""

    caller: str
    job: "Job[Result]"
    result: "asyncio.Future[Result]"


@dataclass(eq=False, slots=True)
class Job(Generic[Result]):
    key: Hashable
    work: Callable[[], Result]
    wanted_by: list[Waiting[Result]] = field(default_factory=list)
    begun: "Future[Result] | None" = None
    """In the executor; None while it waits for its turn."""


class Pool(Generic[Result]):
    """``most_waiting``: jobs whose turn has not come, of all callers together. Used on the event loop alone.

    ``ahead``: jobs whose turn comes before a thread is free, so that no thread waits for the event loop.
    """

    def __init__(self, threads: int, most_waiting: int, name: str, ahead: int = 0) -> None:
        self.at_once = threads + ahead
        self.most_waiting = most_waiting
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.running = 0
        """Jobs whose turn has come."""
        self.waiting = 0
        """Jobs whose turn has not."""
        self.jobs: dict[Hashable, Job[Result]] = {}
        """Waiting or running."""
        self.queues: OrderedDict[str, deque[Waiting[Result]]] = OrderedDict()
        """Callers in the order of their turns; none without a job that waits."""

    async def run(self, key: Hashable, caller: str, work: Callable[[], Result]) -> Result:
        """The result of ``work`` in a thread, or its error; of equal keys at once it is done once.

        Who asks for what others wait for already has it at his own turn, if that comes before theirs. Work that nobody
        wants any more before its turn is never done. Raises Busy.
        """
        job = self.jobs.get(key)
        if job is None:
            if self.running >= self.at_once and self.waiting >= self.most_waiting:
                self.make_room(caller)
            job = self.jobs[key] = Job(key, work)
            self.waiting += 1
        mine: Waiting[Result] = Waiting(caller, job, asyncio.get_running_loop().create_future())
        job.wanted_by.append(mine)
        if job.begun is None:
            self.queues.setdefault(caller, deque()).append(mine)
            self.next_turns()
        try:
            return await mine.result
        finally:
            self.leave(mine)

    def leave(self, mine: Waiting[Result]) -> None:
        if mine.result.done() and not mine.result.cancelled():
            # An error that came while its caller left is nobody's.
            mine.result.exception()
        job = mine.job
        if mine not in job.wanted_by:
            return
        job.wanted_by.remove(mine)
        if job.begun is None:
            self.leave_queue(mine)
            if not job.wanted_by:
                self.waiting -= 1
                del self.jobs[job.key]
        elif not job.wanted_by and job.begun.cancel():
            # No thread had come to it yet.
            del self.jobs[job.key]

    def leave_queue(self, mine: Waiting[Result]) -> None:
        queue = self.queues[mine.caller]
        queue.remove(mine)
        if not queue:
            del self.queues[mine.caller]

    def make_room(self, caller: str) -> None:
        """The last of whoever has most waiting is turned away. Raises Busy where that is ``caller``."""
        while self.waiting >= self.most_waiting:
            longest = max(self.queues.values(), key=len, default=deque())
            if len(longest) <= len(self.queues.get(caller, ())) + 1:
                raise Busy(FULL, code=ErrorCode.IMAGES_BUSY)
            last = longest[-1]
            self.leave(last)
            if not last.result.done():
                last.result.set_exception(Busy(FULL, code=ErrorCode.IMAGES_BUSY))

    def next_turns(self) -> None:
        while self.queues and self.running < self.at_once:
            caller, queue = next(iter(self.queues.items()))
            job = queue[0].job
            self.queues.move_to_end(caller)
            for waiting in job.wanted_by:
                self.leave_queue(waiting)
            self.start(job)

    def start(self, job: Job[Result]) -> None:
        job.begun = self.executor.submit(job.work)
        self.waiting -= 1
        self.running += 1
        ending = asyncio.wrap_future(job.begun)
        ending.add_done_callback(lambda _: self.finish(job, ending))

    def finish(self, job: Job[Result], ran: "asyncio.Future[Result]") -> None:
        self.running -= 1
        if self.jobs.get(job.key) is job:
            del self.jobs[job.key]
        if not ran.cancelled():
            # Retrieved even where nobody is left to hear of it.
            ran.exception()
        for waiting in job.wanted_by:
            if waiting.result.done():
                continue
            if ran.cancelled():
                waiting.result.cancel()
            elif (error := ran.exception()) is not None:
                waiting.result.set_exception(error)
            else:
                waiting.result.set_result(ran.result())
        self.next_turns()

    def close(self) -> None:
        """Ends the threads when their present work is done; what waits is cancelled."""
        for waiting in [waiting for queue in self.queues.values() for waiting in queue]:
            waiting.result.cancel()
            self.leave(waiting)
        self.executor.shutdown(wait=False, cancel_futures=True)
